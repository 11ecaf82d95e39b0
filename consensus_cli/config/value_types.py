"""What each key takes, in words: for hints that name the right form of a value before anything is composed."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any

from consensus_cli.config.schema import AttackConfig, RunConfig


@dataclass(frozen=True)
class Expected:
    """What a key takes.

    Attributes:
        words: what it is, as in "is not WORDS".
        form: how to write it, as in "write KEY=FORM".
        text: whether it is text, which Hydra may need in quotes.
        listed: whether it is a list in brackets.
        fits: whether a value, as Hydra's parser gives it, is one.
    """

    words: str
    form: str
    fits: Callable[[Any], bool]
    text: bool = False
    listed: bool = False


def expected(key: str) -> Expected | None:
    """Returns what a dotted key takes; None where that is open (`model.kwargs.…`) or the key is unknown.

    Example:
        >>> expected("seed").words
        'a whole number'
    """
    if key in _SPECIAL:
        return _SPECIAL[key]
    parent, _, name = key.rpartition(".")
    if parent in _ENTRIES:
        return _ENTRIES[parent]
    if parent.startswith("attacks.suite."):
        return _of(AttackConfig, [name])
    return _of(RunConfig, key.split("."))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_TEXT = Expected("text", "TEXT", lambda value: isinstance(value, str), text=True)
_NUMBER = Expected("a number", "NUMBER", _is_number)
_PLAIN = {
    str: _TEXT,
    float: _NUMBER,
    int: Expected("a whole number", "NUMBER", _is_whole),
    bool: Expected("true or false", "true", lambda value: isinstance(value, bool)),
    dict: Expected("a set of settings in braces", "{NAME: VALUE}", lambda value: isinstance(value, dict)),
}
_NODE = Expected("a single value, but several settings", ".NAME=VALUE for one of them", lambda value: False)
_ATTACK = Expected("an attack", "{name: pgd, eps255: 8, steps: 20}", lambda value: isinstance(value, dict))
#: key -> what it takes, where the schema leaves that open
_SPECIAL = {
    "ratio": Expected(
        "a number or a list of numbers",
        "0.5, or [0.25,0.5] in brackets",
        lambda value: _is_number(value) or (isinstance(value, list) and all(map(_is_number, value))),
        listed=True,
    ),
    "compile": Expected("auto, true or false", "auto", lambda value: value == "auto" or isinstance(value, bool)),
}
#: node -> what each of its entries takes, whatever their names
_ENTRIES = {"metrics.weights": _NUMBER, "evaluate.shift": _TEXT, "attacks.suite": _ATTACK}


def _of(schema: type, path: list[str]) -> Expected | None:
    hints = _hints(schema)
    if path[0] not in hints:
        return None
    annotation, optional = _without_none(hints[path[0]])
    if is_dataclass(annotation):
        if path[1:]:
            return _of(typing.cast(type, annotation), path[1:])
        return _NODE
    found = None if path[1:] else _leaf(annotation)
    return _or_null(found) if found is not None and optional else found


def _leaf(annotation: Any) -> Expected | None:
    origin = typing.get_origin(annotation)
    if origin is not list:
        return _PLAIN.get(origin or annotation)
    (item,) = typing.get_args(annotation)
    one = _PLAIN[item]
    plural = {str: "names", int: "whole numbers", float: "numbers"}[item]
    return Expected(
        f"a list of {plural}",
        f"[{one.form},{one.form}] in brackets",
        lambda value: isinstance(value, list) and all(map(one.fits, value)),
        listed=True,
    )


def _or_null(given: Expected) -> Expected:
    return Expected(
        f"{given.words} or null", given.form, lambda value: value is None or given.fits(value), given.text, given.listed
    )


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation, False
    (item,) = (part for part in typing.get_args(annotation) if part is not type(None))
    return item, True


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)
