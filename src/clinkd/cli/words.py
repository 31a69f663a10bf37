"""Make the verbs of the command line; their exit statuses."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from clinkd.spelling import LOOSE, find_near, suggest

FAILED, WRONG = 1, 2
Verb = Callable[[argparse.Namespace], int]
_FORMER_VERBS = {"clinkd systems": "clinkd compare FOLDER..."}  # and what does their work today


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong argument in one line and points to the help.

    `later` adds arguments only when the command line is parsed, so the help of all verbs imports the code of none.
    """

    later: Callable[[argparse.ArgumentParser], None] | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def complete(self) -> None:
        """Add the arguments of `later`, once."""
        add, self.later = self.later, None
        if add is not None:
            add(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.complete()
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            verb: Parser = parsed.parser
            hints = (
                verb._spell_run(words[len(verb.prog.split()) - 1 :], unknown),
                self._name_owners(unknown[0]),
                verb._spell_flag(unknown[0]),
            )
            hint = next(filter(None, hints), "")
            verb.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed

    def _spell_run(self, words: Sequence[str], unknown: Sequence[str]) -> str:
        """How this verb is given its run, if that was given in another way."""
        flag, equals, value = unknown[0].partition("=")
        places = [a.dest for a in self._actions if not a.option_strings]
        flags = self._option_string_actions
        if flag == "--run" and "run" in places:
            rest = list(words)
            at = rest.index(unknown[0])
            run = value if equals else rest[at + 1] if at + 1 < len(rest) else "RUN"
            del rest[at : at + (1 if equals else 2)]
            return f"; give the run as: {self.prog} {shlex.join([run, *rest])}"
        if not flag.startswith("-") and "--run" in flags and len(places) == len(unknown) == 1:
            return f"; give the run as: {self.prog} --run {shlex.join(words)}"
        return ""

    def _spell_flag(self, word: str) -> str:
        """The flag of this verb that a word is nearest to, if any is near."""
        flag, flags = word.partition("=")[0], self._option_string_actions
        near = next((f for f in flags if f.startswith(flag)), None) or find_near(flag, flags, LOOSE)
        return f"; did you mean {near}?" if flag.startswith("--") and near else ""

    def _name_owners(self, word: str) -> str:
        """The verbs that know a flag, if any does."""
        flag = word.partition("=")[0]
        owners = [p.prog for p in self._list_verbs() if flag.startswith("-") and flag in p._option_string_actions]
        return f"; {flag} belongs to {', '.join(owners)}" if owners else ""

    def _list_verbs(self) -> Iterator[Parser]:
        """All parsers below this one that call a verb, with all their flags."""
        groups = [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        if not groups:
            self.complete()
            yield self
        for below in groups[0].choices.values() if groups else ():
            yield from below._list_verbs()

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and (today := _FORMER_VERBS.get(f"{self.prog} {value}")):
            self.error(f"{value} is no verb of its own any more: {today}")
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = suggest(str(value), map(str, action.choices or ()), LOOSE)
            raise argparse.ArgumentError(action, f"{error.message}{hint}") from None

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
    parser.set_defaults(verb=call, parser=parser)
    return parser
