"""What a user did wrong, told in one line with a hint.

A `UserError` ends the command with exit code 2, a `RunFailedError` with 1, both without a traceback; every other
exception is a bug in this package and keeps its traceback.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

#: names that a hint lists before it only counts them
_LISTED = 40


class UserError(Exception):
    """A mistake of the user's: one line that names it and a hint that mends it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(UserError):
    """One or more mistakes in a configuration, found together before anything expensive starts."""

    def __init__(self, problems: Iterable[UserError]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(p.message for p in self.problems), "; ".join(p.hint for p in self.problems))


class RunFailedError(Exception):
    """A run that could not go on, through no mistake in what was asked for: one line that says why, and a hint."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """Returns the error for a name that no registry or config group holds, with the nearest valid one."""
    names = sorted(valid)
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    suggestion = f"did you mean '{nearest[0]}'? " if nearest else ""
    more = f", … ({len(names)} in all)" if len(names) > _LISTED else ""
    return UserError(f"unknown {kind} '{name}'", f"{suggestion}valid: {', '.join(names[:_LISTED])}{more}")


def tell(error: UserError | RunFailedError) -> None:
    """Prints each mistake in one line with its hint, on standard error."""
    for problem in error.problems if isinstance(error, ConfigError) else [error]:
        sys.stderr.write(f"error: {_one_line(problem.message)}\nhint: {_one_line(problem.hint)}\n")


def _one_line(text: str) -> str:
    return " ".join(text.split())
