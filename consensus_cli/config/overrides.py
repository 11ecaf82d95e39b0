"""The settings of a command line, word by word: what they name is checked before Hydra composes anything.

Hydra would report a mistake with a traceback, or one at a time.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, Override
from hydra.errors import HydraException

from consensus_cli.config import conf_files, launchers, schema
from consensus_cli.config.mistakes import parsed, quoted, quoting_hint, unknown_key, unreadable
from consensus_cli.config.options import find
from consensus_cli.errors import ConfigError, UserError, unknown_name

#: a sweep of more runs is a slip of the pen: each of them is checked before the first starts
MOST_RUNS = 10_000

#: groups of which nothing need be chosen
_OPTIONAL = ("experiment", "budget")

#: group -> what a name that is none of its options may have been meant for
_INSTEAD = {
    "model": "a file of weights: model.weights={0}",
    "dataset": "a folder of images: dataset=imagefolder dataset.root={0}",
    "attacks": "one attack by itself: attacks=none attacks.suite.{0}.name={0}",
}


def check_overrides(words: Sequence[str], *, multirun: bool, own_files: bool = False) -> None:
    """Checks what overrides name, not yet the types of their values.

    Args:
        words: settings such as `model=resnet20`; with `multirun` their values may be sweeps (`ratio=0.25,0.5`).
        multirun: whether sweeps are allowed.
        own_files: whether the user brings config files, whose options are known to Hydra alone.

    Raises:
        UserError: names every override that cannot be read, or that names something unknown.
    """
    overrides = _parse(words)
    own_files = own_files or any(override.key_or_group == "hydra.searchpath" for override in overrides)
    problems: list[UserError] = []
    for override in overrides:
        if override.key_or_group.partition(".")[0].partition("/")[0] == "hydra":
            problems += launchers.problems(override, multirun=multirun)
        else:
            problems += _override_problems(override, own_files)
    if not multirun:
        problems += [_several_values(override) for override in overrides if override.is_sweep_override()]
    elif not problems:
        problems += _sweep_problems([override for override in overrides if override.is_sweep_override()])
    if problems:
        raise ConfigError(problems)


def opened(word: str) -> str:
    """Returns a word as Hydra must get it for what was meant.

    New keys of a node that is open to them need a `++`; the option `null` of a group is one that is not chosen; a name
    that looks like a number (`output_dir=007`, `output_dir=1e3`) stays as it was typed.
    """
    key, _, typed = word.partition("=")
    if key in schema.GROUPS and typed.strip().lower() == "null":
        return f"~{key}"
    option = find(key)
    if option is not None and option.text:
        override = parsed(word)
        if override is not None and isinstance(override.value(), bool | int | float):
            word = quoted(key, typed)
    return f"++{word}" if option is not None and option.open else word


def _parse(words: Sequence[str]) -> list[Override]:
    read = [(word, None if _is_torn_text(word) else parsed(word)) for word in words]
    groups = itertools.groupby(read, key=lambda pair: pair[1] is None)
    problems = [unreadable([word for word, _ in torn]) for cannot, torn in groups if cannot]
    if problems:
        raise ConfigError(problems)
    return [override for _, override in read if override is not None]


def _is_torn_text(word: str) -> bool:
    """Returns whether a word holds bytes that are not UTF-8: Python hands them on as halves of characters."""
    return any("\ud800" <= character <= "\udfff" for character in word)


def _override_problems(override: Override, own_files: bool) -> Iterator[UserError]:
    key, said = override.key_or_group, override.input_line or ""
    option = find(key)
    is_group = key in schema.GROUPS
    added = (override.is_add() and not (option and option.open)) or (override.is_force_add() and is_group)
    if override.is_delete() and key in _OPTIONAL and not override.value():
        return
    if not is_group and option is None and override.package is None:
        yield unknown_key(key)
    elif added or override.package is not None or override.is_delete():
        value = "null" if key in _OPTIONAL and said.startswith("~") else said.partition("=")[2] or "…"
        yield UserError(f"{said}: settings take no +, ~ or @", f"write {key}={value}")
    elif is_group:
        yield from _choice_problems(key, override, own_files)


def _choice_problems(group: str, override: Override, own_files: bool) -> Iterator[UserError]:
    options = list(conf_files.choices(group))
    value, typed = override.value(), (override.input_line or "").partition("=")[2]
    named: list[Any] = list(value.list) if isinstance(value, ChoiceSweep) else [value]
    if group == "metrics":
        named = [name for choice in named for name in (choice if isinstance(choice, list) else [choice])]
    for choice in named:
        name = str(choice) if isinstance(choice, str | int | float) else typed
        if isinstance(choice, Glob):
            known = own_files or bool(choice.filter(options))
        elif choice is None:
            known = group in _OPTIONAL and not override.is_sweep_override()
        else:
            known = name in options or (own_files and isinstance(choice, str | int | float))
        if not known:
            problem = unknown_name(group, name, options)
            if group in _INSTEAD and isinstance(choice, str):
                problem.hint += f"; {_INSTEAD[group].format(name)}"
            yield problem


def _several_values(override: Override) -> UserError:
    key, _, typed = (override.input_line or "").partition("=")
    option = find(key)
    hint = "sweep over them with: consensus run -m …"
    if key == "metrics" or (option is not None and option.listed):
        listed = shlex.quote(f"{key}=[{typed.strip('[](){} ')}]")
        hint = f"several values of one run go into brackets: {listed}; decimals take a point; {hint}"
    elif option is not None and option.own:
        hint += f"; where the comma belongs to the value, {quoting_hint(key, typed)}"
    return UserError(f"{override.input_line} names several values", hint)


def _sweep_problems(sweeps: Sequence[Override]) -> Iterator[UserError]:
    """Yields what would stop Hydra's sweeper, or keep it busy for days."""
    runs = 1
    for override in sweeps:
        count = _count(override)
        if count == 0:
            hint = "name them: A,B, or range(START,STOP,STEP); only options are found by glob(…)"
            yield UserError(f"{override.input_line} names no values to sweep over", hint)
        runs *= max(1, count)
    if runs > MOST_RUNS:
        hint = f"a sweep has at most {MOST_RUNS:,}; name fewer values"
        yield UserError(f"the sweep asks for more than {MOST_RUNS:,} runs", hint)


def _count(override: Override) -> int:
    """Returns how many values a sweep has, counted up to one more than `MOST_RUNS`."""
    if isinstance(override.value(), Glob):
        # Its options are looked up when it is filled in.
        return int(override.key_or_group in schema.GROUPS)
    try:
        return sum(1 for _ in itertools.islice(override.sweep_string_iterator(), MOST_RUNS + 1))
    except (HydraException, ValueError, OverflowError):
        return 0
