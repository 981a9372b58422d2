"""Trains a model: python train.py --config=configs/quickstart.py --workdir=runs/quickstart

The same command goes on with a run that was interrupted. Fields of the config can be set on the command line
(--config.steps=2000). Exit status 2 means that the input is wrong, and one sentence says what; 143 that SIGTERM came
(a notice of preemption) and that the state is saved, to go on from.

On several hosts the same command is started on each. On a TPU pod, under Slurm and under Open MPI they find each other;
elsewhere --coordinator=HOST:PORT --num_processes=N --process_id=I (0 on the host of the coordinator) tell them.
"""

import re
import signal
import sys
import traceback

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from wroformer_jax.config.training import TrainingConfig, unknown_field
from wroformer_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "the settings, for example configs/quickstart.py")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "directory for checkpoints, curves and logs, made if need be; or gs://BUCKET/RUN"
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first of several processes")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "how many processes there are, one a host as a rule")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "the number of this one, from 0")
_VERBOSE = flags.DEFINE_bool("verbose", False, "show the traceback of an error")
flags.mark_flags_as_required(["config", "workdir"])


def parse(argv: list[str]) -> list[str]:
    """Parses the flags and loads the config; what is wrong is said in one sentence, with exit status 2."""
    try:
        rest = flags.FLAGS(argv)
        settings = _CONFIG.value
        getattr(settings, "to_dict", None)  # what stands for a file that is not there raises when it is used
    except (flags.Error, AttributeError, ImportError, KeyError, OSError, TypeError, ValueError, SyntaxError) as error:
        sys.exit(_refuse(_sentence(error)))
    if not isinstance(settings, ConfigDict):
        sys.exit(_refuse(f"get_config() gives {type(settings).__name__}, expected a ConfigDict"))
    if len(rest) > 1:
        sys.exit(_refuse(f"unexpected argument {rest[1]!r}: settings are given as --config.NAME=VALUE"))
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)  # absl's default, INFO, lets every library chat
    return rest


def main(_argv: list[str]) -> int:
    try:
        config = TrainingConfig.from_dict(_CONFIG.value.to_dict())
        # These take seconds, so a mistake in the config is told before.
        from wroformer_jax.parallel.processes import connect
        from wroformer_jax.training.loop import PreemptedError
        from wroformer_jax.training.trainer import train

        connect(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        try:
            train(config, _WORKDIR.value)
        except PreemptedError as saved:
            print(f"train.py: terminated; {saved}, and the same command goes on from there", file=sys.stderr)
            return 128 + signal.SIGTERM
    except InputError as error:
        if _VERBOSE.value:
            traceback.print_exc()
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("train.py: interrupted; the same command goes on from the newest checkpoint", file=sys.stderr)
        return 130
    return 0


def _sentence(error: Exception) -> str:
    """What ml_collections and absl raise, without quoting marks round it and lines before the reason."""
    text = str(error.args[0] if error.args else error).replace("\\n", "\n").replace("\\'", "'")
    if isinstance(error, AttributeError | KeyError) and (name := re.match(r"['\"]+(\w+)", text)):
        return unknown_field(name[1])
    if "Flag --" in str(error) and "must have a value" in str(error):
        return "--config and --workdir are needed, as in --config=configs/quickstart.py --workdir=runs/quickstart"
    if missing := re.search(r"No such file or directory: '([^']+)'", str(error)):
        return f"{missing[1]}: no such file"
    return str(error).strip().splitlines()[-1].strip()


def _refuse(sentence: str) -> int:
    print(f"train.py: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
