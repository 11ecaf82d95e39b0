"""A command of `consensus`: its options, from which its --help is made, and how the words behind it are read."""

from __future__ import annotations

import argparse
import inspect
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from consensus_cli.errors import UserError, did_you_mean, nearest

if TYPE_CHECKING:
    from consensus_cli.data.share import Share

Made = TypeVar("Made")
Answer = Callable[[Namespace], int]
#: names and settings of an argument of argparse
Argument = tuple[tuple[str, ...], dict[str, Any]]


@dataclass(frozen=True)
class Command:
    """A word behind `consensus`; its help is made of the fields.

    Attributes:
        name: the word.
        answer: does what was asked for, and returns the exit code; its docstring is the description.
        arguments: what it takes; those of a list exclude each other.
        examples: words behind its name.
    """

    name: str
    answer: Answer
    arguments: Sequence[Argument | list[Argument]]
    examples: Sequence[str]

    def __call__(self, words: Sequence[str], share: Share | None = None, *, debug: bool = False) -> int:
        """Does what words ask for, as one of several processes where `share` says so, and returns the exit code."""
        asked = agreed(share, lambda: self.parser().read(words))
        asked.debug, asked.share = debug, share
        if share is not None and not share.leads:
            asked.screen = "none"
        return self.answer(asked)

    def parser(self) -> Parser:
        """Returns the parser of what stands behind the command."""
        examples = "".join(f"\n  consensus {self.name} {words}" for words in self.examples)
        parser = Parser(f"consensus {self.name}", inspect.getdoc(self.answer) or "", f"examples:{examples}")
        for argument in self.arguments:
            group = parser.add_mutually_exclusive_group() if isinstance(argument, list) else parser
            for names, settings in argument if isinstance(argument, list) else [argument]:
                group.add_argument(*names, **settings)
        parser.add_argument("--debug", action="store_true", help="the traceback behind an error, too")
        return parser


class Parser(ArgumentParser):
    """Raises a mistake as everything else here does."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, epilog=epilog, formatter_class=form, allow_abbrev=False)

    def read(self, words: Sequence[str]) -> Namespace:
        """Returns what the words ask for; settings and options may stand in any order.

        Raises:
            UserError: an unknown option, one without its value, or options that exclude each other.
        """
        # argparse keeps its options in private fields alone; tests of unknown options notice when these change.
        settings = any(action.dest == "settings" for action in self._actions)
        for word in words if settings else ():
            self._check_dashes(word)
        asked, unknown = self.parse_known_intermixed_args(list(words))
        if unknown:
            close = did_you_mean(nearest(unknown[0], self._option_string_actions, cutoff=0.7)[:1])
            plain = "; settings are written without dashes: key=value" if settings else ""
            hint = f"{close}{self.prog} --help shows what it takes{plain}"
            raise UserError(f"{self.prog}: unknown option '{unknown[0]}'", hint)
        return asked

    def _check_dashes(self, word: str) -> None:
        from consensus_cli.config.options import find

        key, _, value = word.lstrip("-").replace("-", "_", 1).partition("=")
        if word.startswith("-") and find(key) is not None:
            setting = f"{key}={shlex.quote(value) if value else '…'}"
            raise UserError(f"{self.prog}: unknown option '{word}'", f"settings are written without dashes: {setting}")

    def error(self, message: str) -> NoReturn:
        """Raises a `UserError` in place of printing the usage."""
        raise UserError(f"{self.prog}: {message}", f"{self.prog} --help shows what it takes")


def agreed(share: Share | None, make: Callable[[], Made]) -> Made:
    """Returns what `make` does; in a job a mistake in it is one of all processes, and one message."""
    return make() if share is None else share.agree(make)
