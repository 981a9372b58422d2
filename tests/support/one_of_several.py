"""Runs one process of a training run: python one_of_several.py SETTINGS, a JSON object.

`workdir` and `config` (fields of a TrainingConfig) describe the run; `devices`, `port`, `process` and `processes` this
process. Events happen at steps counted from the start of the process: at the step `sigkill` or `sigterm` the process
sends itself that signal; the batches from the first to the last of `nan` are NaN. With `form` "fails", attention other
than by scan fails in this process; with "works" it is that by scan.
"""

import dataclasses
import itertools
import json
import os
import signal
import sys

import jax

SETTINGS = json.loads(sys.argv[1])
jax.config.update("jax_num_cpu_devices", SETTINGS.get("devices", 1))

import numpy as np

from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model import trial
from wroformer_jax.parallel.processes import connect
from wroformer_jax.training.loop import PreemptedError
from wroformer_jax.training.step import make_train_step
from wroformer_jax.training.trainer import train

own_form_of = trial.form_of


def make_eventful_step(*args):
    """Makes the training step, before which the events of the settings happen."""
    step, numbers = make_train_step(*args), itertools.count(1)
    first_bad, last_bad = SETTINGS.get("nan", (0, 0))

    def eventful(state, batch):
        number = next(numbers)
        for name in ("sigkill", "sigterm"):
            if SETTINGS.get(name) == number:
                os.kill(os.getpid(), getattr(signal, name.upper()))
        if first_bad <= number <= last_bad:
            batch = {name: audio * np.float32(np.nan) for name, audio in batch.items()}
        return step(state, batch)

    return eventful


def form_of(config):
    """Stands in for `trial.form_of`."""
    if SETTINGS["form"] == "fails" and config.attention_impl != "scan":
        raise RuntimeError("no such instruction")
    return own_form_of(dataclasses.replace(config, attention_impl="scan"))


def main():
    if "form" in SETTINGS:
        trial.form_of = form_of
    if SETTINGS.get("processes"):
        connect(f"localhost:{SETTINGS['port']}", SETTINGS["processes"], SETTINGS["process"])
    try:
        train(TrainingConfig.from_dict(SETTINGS["config"]), SETTINGS["workdir"], make_step=make_eventful_step)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except PreemptedError as error:
        print(error, file=sys.stderr)
        return 143
    return 0


if __name__ == "__main__":
    sys.exit(main())
