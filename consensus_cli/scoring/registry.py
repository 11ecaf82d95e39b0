"""Named things of one kind: those of this package, a user's own, and those that installed packages offer."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from consensus_cli.errors import UserError, described, unknown_name

T = TypeVar("T")


class Registry(UserDict[str, T]):
    """Name -> thing. An unknown name raises a `UserError` with the valid ones.

    Another package offers a thing as an entry point, which is loaded when its name is looked up and not before:

        [project.entry-points."consensus_cli.metrics"]
        mean_shift = "their_package.metrics:MEAN_SHIFT"

    Args:
        kind: what messages call such a thing.
        group: of the entry points.
        own: those of this package, whose names are taken.
        problem: returns what is wrong with a thing of this name; empty where nothing is.
    """

    def __init__(self, kind: str, group: str, own: Mapping[str, T], problem: Callable[[str, object], str]) -> None:
        super().__init__(own)
        self.kind, self.group = kind, group
        self._taken, self._problem = frozenset(own), problem

    def register(self, name: str, thing: T) -> None:
        """Adds a thing for this process; one registered before under the same name is replaced.

        Raises:
            UserError: it is not of the kind, or this package has one of that name.
        """
        if name in self._taken:
            raise UserError(f"there is a {self.kind} '{name}' already", "give yours another name")
        if not name.isidentifier():
            raise UserError(f"'{name}' cannot name a {self.kind}", "use letters, digits and underscores")
        if problem := self._problem(name, thing):
            raise UserError(f"{self.kind} '{name}' {problem}", "see docs/python.md")
        self[name] = thing

    def __missing__(self, name: str) -> T:
        point = self._offered().get(name)
        if point is None:
            raise unknown_name(self.kind, name, self)
        offer = f"{self.kind} '{name}' of the package {point.dist.name if point.dist else point.value}"
        try:
            thing = point.load()
        except Exception as error:
            raise UserError(
                f"{offer} cannot be loaded: {described(error)}", "mend or uninstall that package"
            ) from error
        if problem := self._problem(name, thing):
            raise UserError(f"{offer} {problem}", "mend or uninstall that package")
        self[name] = thing
        return thing

    def __contains__(self, name: object) -> bool:
        return name in self.data or name in self._offered()

    def __iter__(self) -> Iterator[str]:
        return iter([*self.data, *(name for name in self._offered() if name not in self.data)])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _offered(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}
