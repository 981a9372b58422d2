"""The parser of our commands: a wrong command gets one sentence instead of its whole usage."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser without abbreviations, whose errors are one line that says where the help is."""

    def __init__(self, *, passes_on: bool = False, **settings: Any) -> None:
        """Makes a parser.

        Args:
          passes_on: leave all arguments to another parser, in the attribute `passed_on` of the result. Only --help is
            answered here, from options that are added for this purpose.
          settings: for argparse.
        """
        super().__init__(allow_abbrev=False, **settings)
        self._passes_on = passes_on
        self._given: Sequence[str] = ()

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        self._given = sys.argv[1:] if args is None else args
        if self._passes_on and not {"-h", "--help"} & set(self._given):
            namespace, _ = super().parse_known_args([], namespace)
            namespace.passed_on = list(self._given)
            return namespace, []
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        given = [argument.split("=")[0] for argument in self._given if argument.startswith("--")]
        # argparse reports a missing option before an unknown one, which often is the same option misspelt.
        for option in given if message.startswith("the following arguments are required") else ():
            if option not in known:
                close = difflib.get_close_matches(option, known, n=1)
                message = f"unknown option {option}" + (f", did you mean {close[0]}?" if close else "")
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")
