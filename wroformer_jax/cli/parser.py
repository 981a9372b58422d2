"""The parser of our commands: a wrong command gets one sentence, not its whole usage."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import NoReturn


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser without abbreviations, whose errors are one line that says where the help is."""

    def __init__(self, **settings) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self._given: Sequence[str] = ()

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        self._given = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        given = [argument.split("=")[0] for argument in self._given if argument.startswith("--")]
        # argparse names what is missing before what it does not know, which often is the same thing misspelt.
        for option in given if message.startswith("the following arguments are required") else ():
            if option not in known:
                close = difflib.get_close_matches(option, known, n=1)
                message = f"unknown option {option}" + (f", did you mean {close[0]}?" if close else "")
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")
