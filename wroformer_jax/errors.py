"""The one error that a user of this package is meant to read."""

import difflib


class InputError(ValueError):
    """Input that cannot be used: the message is one sentence that names the file or field and what to do.

    Raised at the border (files, configurations, command lines, public functions), never from inside a
    jitted computation. The command line prints it without a traceback and exits with status 2.
    """


def suggestion(name: str, known: list[str]) -> str:
    """', did you mean ...?' for a name close to a known one, else ''."""
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""
