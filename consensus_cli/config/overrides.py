"""The settings of a command line, word by word: what they name is checked before Hydra composes anything.

Hydra would report a mistake with a traceback, or one at a time.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, RangeSweep, ValueType

from consensus_cli.config import conf_files, launchers, repairs, schema
from consensus_cli.config.schema import AttackConfig
from consensus_cli.config.value_types import expected
from consensus_cli.errors import ConfigError, UserError, did_you_mean, nearest, unknown_name
from consensus_cli.evaluation.robustness.attacks import ATTACKS

#: nodes below which a user may name keys of their own
OPEN = ("model.kwargs.", "metrics.weights.", "attacks.suite.", "evaluate.shift.")

#: a sweep of more runs is a slip of the pen: each of them is checked before the first starts
MOST_RUNS = 10_000

#: what other tools call a key -> its last part here, or all of it
_ELSEWHERE = {"lr": "learning_rate", "wd": "weight_decay", "bs": "batch_size", "gpu": "device", "out": "output_dir"}
_ELSEWHERE |= {"eps": "eps255", "epsilon": "eps255"}
_ELSEWHERE |= dict.fromkeys(("checkpoint", "ckpt", "pretrained"), "model.weights") | {"path": "dataset.root"}


def check_overrides(words: Sequence[str], *, multirun: bool, own_files: bool = False) -> list[Override]:
    """Returns the overrides after checking what they name, not yet the types of their values.

    Args:
        words: settings such as `model=resnet20`; with `multirun` their values may be sweeps (`ratio=0.25,0.5`).
        multirun: whether sweeps are allowed.
        own_files: whether the user brings config files, whose options are known to Hydra alone.

    Raises:
        UserError: names every override that cannot be read, or that names what there is not.
    """
    overrides = _parse(words)
    own_files = own_files or any(override.key_or_group == "hydra.searchpath" for override in overrides)
    chosen = [override.value() for override in overrides if override.key_or_group == launchers.GROUP]
    launcher = chosen[-1] if chosen else launchers.BASIC
    problems: list[UserError] = []
    for override in overrides:
        if _is_hydras(override.key_or_group):
            problems += launchers.problems(override, multirun=multirun, own_configs=own_files, chosen=launcher)
        else:
            problems += _override_problems(override, own_files)
    if not multirun:
        problems += [_several_values(override) for override in overrides if override.is_sweep_override()]
    if not problems and multirun:
        problems = list(_sweep_problems(overrides))
    if problems:
        raise ConfigError(problems)
    return overrides


def opened(word: str) -> str:
    """Returns a word as Hydra must get it for what was meant.

    New keys of a node that is open to them need a `++`; the option `null` of a group is one that is not chosen; a name
    that looks like a number (`output_dir=007`, `output_dir=1e3`) stays as it was typed.
    """
    key, _, typed = word.partition("=")
    if key in schema.GROUPS and typed.strip().lower() == "null":
        return f"~{key}"
    takes = expected(key)
    if takes is not None and takes.text:
        override = repairs.parsed(word)
        if override is not None and isinstance(override.value(), bool | int | float):
            word = repairs.quoted(key, typed)
    return f"++{word}" if f"{key}.".startswith(OPEN) else word


def _parse(words: Sequence[str]) -> list[Override]:
    overrides: list[Override] = []
    problems: list[UserError] = []
    before = ""
    for word in repairs.set_apart(words):
        if isinstance(word, UserError):
            problems.append(word)
            continue
        override = repairs.parsed(word)
        if any("\ud800" <= character <= "\udfff" for character in word):
            problems.append(UserError(f"{word!a} is not UTF-8", "rename the file, or point a link at it"))
        elif override is None:
            problems.append(_torn_value(before, word) or repairs.unreadable(word))
        else:
            overrides.append(override)
        before = word
    if problems:
        raise ConfigError(problems)
    return overrides


def _torn_value(before: str, word: str) -> UserError | None:
    """Returns the mistake of a value with a blank whose quotes the shell took: `dataset.root=my photos`."""
    key = before.partition("=")[0]
    whole = f"{before} {word}"
    if "=" in word or not repairs.takes_text(key) or Path(word).suffix in {".yaml", ".yml"}:
        return None
    override = repairs.parsed(whole) or repairs.parsed(repairs.quoted(key, whole.partition("=")[2]))
    if override is None:
        return None
    shown = whole if repairs.parsed(whole) else repairs.quoted(key, whole.partition("=")[2])
    return UserError(f"cannot read '{word}'", f"if it belongs to the word before, quote both: {shlex.quote(shown)}")


def _is_hydras(key: str) -> bool:
    return key == "hydra" or key.startswith(("hydra.", "hydra/"))


def _override_problems(override: Override, own_files: bool) -> Iterator[UserError]:
    key = override.key_or_group
    if override.package is not None:
        yield UserError(f"{override.input_line} moves a group to another place", f"leave the @ out: {key}=…")
    elif override.is_delete() and key != "experiment":
        yield UserError(f"{override.input_line} would delete a setting", f"give it another value: {key}=…")
    elif key in schema.GROUPS:
        yield from _group_problems(key, override, own_files)
    elif key not in set(schema.keys()) and not _is_open(key):
        yield _unknown_key(key)
    elif override.is_add() and not f"{key}.".startswith(OPEN):
        yield UserError(
            f"{override.input_line} adds a setting that is there already",
            f"write it without +: {(override.input_line or '').lstrip('+')}",
        )


def _group_problems(group: str, override: Override, own_files: bool) -> Iterator[UserError]:
    if override.is_delete():
        if override.value() not in (None, ""):
            yield UserError(f"cannot take {override.input_line} away", f"choose none with: {group}=null")
        return
    if override.is_add() or override.is_force_add():
        yield UserError(
            f"{override.input_line} adds an option to a group that has one",
            f"write it without +: {(override.input_line or '').lstrip('+')}",
        )
        return
    value = override.value()
    if isinstance(value, RangeSweep):
        yield UserError(f"{override.input_line} names numbers, not options", f"name them: {group}=A,B")
        return
    named = value.list if isinstance(value, ChoiceSweep) else [value]
    for choice in named:
        yield from _choice_problems(group, choice, own_files, alone=len(named) == 1)


def _choice_problems(group: str, choice: Any, own_files: bool, *, alone: bool) -> Iterator[UserError]:
    options = conf_files.choices(group)
    if choice is None and not (group == "experiment" and alone):
        none = f"; {group}=none chooses nothing" if "none" in options else ""
        yield UserError(f"{group}=null is not an option", f"valid: {', '.join(options)}{none}")
    elif isinstance(choice, list) and group != "metrics":
        yield UserError(f"{group}={choice} names several options", f"{group} takes one; only metrics takes a list")
    elif isinstance(choice, dict):
        name = next(iter(choice), "NAME")
        yield UserError(f"{group} takes the name of an option, not settings", f"single settings: {group}.{name}=…")
    elif isinstance(choice, Glob):
        if not own_files and not choice.filter(list(options)):
            yield UserError(f"{group} has no option like {', '.join(choice.include)}", f"valid: {', '.join(options)}")
    elif choice is not None and not own_files:
        for name in choice if isinstance(choice, list) else [choice]:
            if str(name) not in options:
                yield _unknown_option(group, str(name), list(options))


def _unknown_option(group: str, name: str, options: list[str]) -> UserError:
    problem = unknown_name(group, name, options)
    if group == "attacks" and name in ATTACKS:
        problem.hint = f"one attack by itself: attacks=none attacks.suite.{name}.name={name}; {problem.hint}"
    if "${" in name:
        problem.hint = f"options take no references; let the shell fill them in: {group}=$NAME"
    is_path = "/" in name or "\\" in name
    if group == "dataset" and is_path:
        problem.hint = f"a folder of images: dataset=imagefolder dataset.root={name}; {problem.hint}"
    elif group == "model" and is_path:
        problem.hint = f"a file of weights: model.weights={name}; {problem.hint}"
    return problem


def _several_values(override: Override) -> UserError:
    key, _, typed = (override.input_line or "").partition("=")
    takes = expected(key)
    hint = "sweep over them with: consensus run -m …"
    if takes is not None and takes.fits(0.5) and re.fullmatch(r"[-+]?\d+,\d+", typed):
        hint = f"decimals take a point: {key}={typed.replace(',', '.')}; {hint}"
    elif override.value_type != ValueType.SIMPLE_CHOICE_SWEEP:
        pass
    elif takes is not None and takes.listed:
        items = typed.strip("[](){} ")
        hint = f"several values of one run go into brackets: {shlex.quote(f'{key}=[{items}]')}; {hint}"
    elif repairs.names_something(key):
        hint += f"; where the comma belongs to the value, {repairs.quoting_hint(key, typed)}"
    elif key == "metrics":
        hint = f"several metrics vote together in brackets: {shlex.quote(f'{key}=[{typed}]')}; {hint}"
    return UserError(f"{override.input_line} names several values", hint)


def _sweep_problems(overrides: Sequence[Override]) -> Iterator[UserError]:
    """Yields what would stop Hydra's sweeper, or keep it busy for days."""
    runs = 1
    for override in overrides:
        if not override.is_sweep_override():
            continue
        if override.is_interval_sweep():
            yield UserError(f"{override.input_line} has no end of values", "name them: ratio=0.25,0.5")
            return
        if isinstance(override.value(), Glob) and override.key_or_group not in schema.GROUPS:
            yield UserError(f"{override.input_line}: only options have names to choose from", "name the values: A,B")
            return
        count = _count(override.value())
        if count == 0:
            yield UserError(f"{override.input_line} names no value", "ranges are written range(START,STOP,STEP)")
        runs *= max(1, count)
    if runs > MOST_RUNS:
        yield UserError(f"the sweep asks for {runs:,} runs", f"a sweep has at most {MOST_RUNS:,}; name fewer values")


def _count(value: Any) -> int:
    if isinstance(value, RangeSweep):
        assert value.start is not None
        assert value.stop is not None
        if not value.step or not math.isfinite(value.start + value.stop + value.step):
            return 0
        return max(0, math.ceil((value.stop - value.start) / value.step))
    return len(value.list) if isinstance(value, ChoiceSweep) else 1


def _unknown_key(key: str) -> UserError:
    known = sorted(schema.keys())
    parent = key.rpartition(".")[0]
    if parent.startswith("attacks.suite."):
        known += [f"{parent}.{field.name}" for field in fields(AttackConfig)]
    siblings = [k for k in known if k.rpartition(".")[0] == parent] or [k for k in known if "." not in k]
    return UserError(
        f"unknown config key '{key}'", f"{did_you_mean(_meant(key, known, siblings))}valid here: {', '.join(siblings)}"
    )


def _meant(key: str, known: list[str], siblings: list[str]) -> list[str]:
    """Returns the keys that one which does not exist may mean: first below the same node, then anywhere."""
    last = key.rpartition(".")[2].rpartition("/")[2]
    last = _ELSEWHERE.get(last.lower(), last)
    if last in known:
        return [last]
    for node in OPEN:
        # `scoring.weights.cka` for `metrics.weights.cka`
        if f".{key}".endswith(f".{node.split('.')[1]}.{last}"):
            return [f"{node}{last}"]
    by_name: dict[str, list[str]] = {}
    for name in siblings if "." in key else known:
        by_name.setdefault(name.rpartition(".")[2], []).append(name)
    if last in by_name:
        return by_name[last][:3]
    if "." in key and (close := nearest(last, by_name)):
        return by_name[close[0]][:1]
    elsewhere = [name for name in known if name.rpartition(".")[2] == last]
    close = nearest(key, [name for name in known if not key.startswith(f"{name}.")])
    return elsewhere[:3] or close[:1] or [name for found in nearest(last, by_name)[:1] for name in by_name[found]][:3]


def _is_open(key: str) -> bool:
    if key.startswith("attacks.suite."):
        below = key.removeprefix("attacks.suite.").split(".")
        return len(below) == 1 or (len(below) == 2 and below[1] in {f.name for f in fields(AttackConfig)})
    return key.startswith(OPEN)
