"""The flags among the words of a command that takes settings: Hydra's own behind `run`, none behind the others."""

from __future__ import annotations

import argparse
import re
import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser

from consensus_cli.config import schema
from consensus_cli.errors import UserError, did_you_mean, nearest

#: flags of Hydra's that make no sense here, and what does
_REFUSED = {
    "experimental_rerun": ("--experimental-rerun", "a run is continued with: consensus resume RUN"),
    "shell_completion": ("--shell-completion", "consensus list, and consensus run --cfg job, show what there is"),
}
#: flags that are taken off before
_EVERYWHERE = ("--quiet", "--json", "--debug", "--help")
_ALONE = ("run", "multirun", "cfg", "info", "hydra_help")


def parser() -> ArgumentParser:
    """Returns Hydra's parser of flags, which tells of mistakes by exceptions."""
    made: ArgumentParser = get_args_parser()
    made.exit_on_error = False
    made.allow_abbrev = False
    return made


def read_flags(words: Sequence[str]) -> Namespace:
    """Returns Hydra's flags and the `overrides` among the words of `consensus run`.

    Raises:
        UserError: an unknown flag, one without its value, or flags that exclude each other.
    """
    _check_dashes(words)
    made = parser()
    known = [option for action in made._actions for option in action.option_strings]
    try:
        flags, unknown = made.parse_known_intermixed_args(list(words))
    except argparse.ArgumentError as error:
        raise UserError(f"consensus run: {error}", "consensus run --help shows what it takes") from error
    if unknown:
        raise unknown_option("run", unknown[0], known)
    for name, (flag, hint) in _REFUSED.items():
        if getattr(flags, name):
            raise UserError(f"{flag} is not supported", hint)
    if flags.cfg and flags.multirun:
        raise UserError("--cfg shows one configuration, a sweep has several", "leave -m out")
    if sum(bool(getattr(flags, name)) for name in _ALONE) > 1:
        raise UserError("--run, --multirun, --cfg, --info and --hydra-help exclude each other", "give one of them")
    if (flags.resolve or flags.package) and not flags.cfg:
        raise UserError("--resolve and --package go with --cfg", "consensus run --cfg job --resolve")
    return flags


def settings_only(command: str, words: Sequence[str]) -> list[str]:
    """Returns the words of a command that takes settings and no flags of Hydra's.

    Raises:
        UserError: a word is a flag.
    """
    _check_dashes(words)
    for word in words:
        if word in ("-m", "--multirun"):
            raise UserError(f"consensus {command} takes one configuration, not a sweep", "leave -m out")
        if word in ("-c", "--cfg"):
            raise UserError(f"consensus {command} has no --cfg", "the settings are those of: consensus run --cfg job")
        if word.startswith("-") and word != "-":
            raise unknown_option(command, word, [])
    return list(words)


def unknown_option(command: str, word: str, known: Sequence[str]) -> UserError:
    """Returns the mistake of a flag that a command does not have."""
    key = word.lstrip("-").replace("-", "_")
    if key in set(schema.keys()):
        return UserError(f"unknown option '{word}'", f"settings are written without dashes: {key}=…")
    flags = {option for option in known if option.startswith("--")} | set(_EVERYWHERE)
    suggestion = did_you_mean(nearest(word, sorted(flags - {word}), cutoff=0.7)[:1])
    return UserError(
        f"unknown option '{word}' of consensus {command}",
        f"{suggestion}consensus {command} --help shows them; settings are written without dashes: key=value",
    )


def _check_dashes(words: Sequence[str]) -> None:
    for word in words:
        if match := re.fullmatch(r"-+([A-Za-z_][\w./]*=.*)", word, re.DOTALL):
            flag = word.partition("=")[0]
            if flag in ("--cfg", "--info", "--package", "--config-dir", "--config-name", "--config-path"):
                continue
            raise UserError(f"unknown option '{word}'", f"settings are written without dashes: {shlex.quote(match[1])}")
