"""Every option by its dotted key: what it takes, in words, for hints that name the right form of a value."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from consensus_cli.config.schema import RunConfig

#: type -> (what it is, as in "is not WORDS"; how it is written, as in "write KEY=FORM")
_WORDS: dict[Any, tuple[str, str]] = {
    str: ("text", "TEXT"),
    float: ("a number", "NUMBER"),
    int: ("a whole number", "NUMBER"),
    bool: ("true or false", "true"),
    dict: ("a set of settings in braces", "{NAME: VALUE}"),
}
_PLURAL = {str: "names", int: "whole numbers", float: "numbers"}


@dataclass(frozen=True)
class Option:
    """What a key takes.

    Attributes:
        kind: type of its values; a dataclass for a node of several options.
        optional: whether it takes null.
        rules: metadata of its field, or of the field of the dictionary that holds it.
        open: whether it is a dictionary, or lies in one, so that users name keys of their own.
    """

    kind: Any
    optional: bool
    rules: Mapping[str, Any]
    open: bool = False

    @property
    def words(self) -> str:
        """What it takes, as in "is not WORDS"."""
        return self._in_words[0] + (" or null" if self.optional else "")

    @property
    def form(self) -> str:
        """How that is written, as in "write KEY=FORM"."""
        return self._in_words[1]

    @property
    def listed(self) -> bool:
        """Whether it takes a list in brackets."""
        return typing.get_origin(self.kind) is list or "brackets" in self.form

    @property
    def text(self) -> bool:
        """Whether it takes text, which Hydra may need in quotes."""
        return self.kind is str

    @property
    def own(self) -> bool:
        """Whether its text is the user's own, such as the name of a file, and not one of a few that we know."""
        return "own" in self.rules or (self.kind is Any and self.open)

    @property
    def _in_words(self) -> tuple[str, str]:
        if "takes" in self.rules:
            return self.rules["takes"]
        if typing.get_origin(self.kind) is list:
            (item,) = typing.get_args(self.kind)
            form = _WORDS[item][1]
            return f"a list of {_PLURAL[item]}", f"[{form},{form}] in brackets"
        if is_dataclass(self.kind):
            return _WORDS[dict]
        return _WORDS.get(typing.get_origin(self.kind) or self.kind, ("anything", "VALUE"))

    def below(self, name: str) -> Option | None:
        """Returns the option of this name in the node or dictionary that this one is; None: there is none."""
        if is_dataclass(self.kind):
            found = {item.name: item for item in fields(self.kind)}.get(name)
            if found is None:
                return None
            node: Any = self.kind
            return Option(*_without_null(_hints(node)[name]), found.metadata, self.open)
        if typing.get_origin(self.kind) is dict:
            entries = self.rules.get("entries", typing.get_args(self.kind)[1])
            return Option(entries, False, {} if "entries" in self.rules else self.rules, True)
        return self if self.kind is Any and self.open else None


@functools.cache
def find(key: str) -> Option | None:
    """Returns what a dotted key takes; None: there is no such key.

    Example:
        >>> find("seed").words
        'a whole number'
    """
    option: Option | None = Option(RunConfig, False, {})
    for name in key.split("."):
        option = option.below(name) if option is not None else None
    if option is not None and typing.get_origin(option.kind) is dict:
        return Option(option.kind, option.optional, option.rules, open=True)
    return option


def keys(node: type = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yields every dotted key of the schema, nodes included (`prune`, `prune.step`, …)."""
    for name, annotation in _hints(node).items():
        yield prefix + name
        if is_dataclass(annotation):
            yield from keys(typing.cast(type, annotation), f"{prefix}{name}.")


def _without_null(annotation: Any) -> tuple[Any, bool]:
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation, False
    (kind,) = (part for part in typing.get_args(annotation) if part is not type(None))
    return kind, True


@functools.cache
def _hints(node: type) -> dict[str, Any]:
    hints = typing.get_type_hints(node)
    return {item.name: hints[item.name] for item in fields(node)}
