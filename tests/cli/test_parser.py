"""What a wrong command line is told."""

import pytest

from wroformer_jax.cli.app import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["separate", "a.wav", "--chekpoint", "m", "--output", "d"],
            "unknown option --chekpoint, did you mean --checkpoint?",
        ),
        (["separate", "a.wav"], "the following arguments are required: --checkpoint, --output"),
        (["separate", "a.wav", "--checkpoint", "m", "--output", "d", "--foo"], "unrecognized arguments: --foo"),
        (["separate", "a.wav", "--checkpoint", "m", "--output", "d", "--over"], "unrecognized arguments: --over"),
        (["separate", "a.wav", "--checkpoint", "m", "--output", "d", "--overlap", "0"], "--overlap"),
        (["seperate"], "invalid choice: 'seperate'"),
        ([], "COMMAND"),
    ],
)
def test_one_line_that_says_where_the_help_is(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert error.endswith("--help)\n")
