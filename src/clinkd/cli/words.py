"""Make the verbs of the command line; their exit statuses."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

FAILED, WRONG = 1, 2
Verb = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong argument in one line and points to the help.

    `later` adds arguments only when the command line is parsed, so the help of all verbs imports the code of none.
    """

    later: Callable[[argparse.ArgumentParser], None] | None = None

    def complete(self) -> None:
        """Add the arguments of `later`, once."""
        add, self.later = self.later, None
        if add is not None:
            add(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.complete()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_verb(among: Any, name: str, call: Verb, what: str, example: str, parents: Sequence[Parser] = ()) -> Parser:
    """Add a verb to `among`, with its help, an example and --debug."""
    parser: Parser = among.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=f"example: {example}",
        parents=list(parents),
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(verb=call)
    return parser
