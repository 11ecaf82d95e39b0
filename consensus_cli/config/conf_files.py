"""The folder `conf/`: where it lies, and which options each config group offers, those of other packages included."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

from consensus_cli.errors import UserError

#: config group -> groups of entry points whose names are options as well
_OFFERED = {"metrics": ("consensus_cli.metrics",), "criterion": ("consensus_cli.metrics", "consensus_cli.criteria")}


def config_dir() -> Path:
    """Returns the folder of the YAML files: inside an installed wheel, else at the top of the repository."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


@dataclass(frozen=True)
class Origin:
    """Where a configuration is composed from.

    Attributes:
        folder: of the primary config file.
        name: of the primary config file, without `.yaml`.
        further: a folder of the user's with further options; None: there is none.
    """

    folder: Path = field(default_factory=config_dir)
    name: str = "config"
    further: Path | None = None

    @property
    def own(self) -> bool:
        """Whether the user brings files, so that the options are known to Hydra alone."""
        return self != Origin()

    @property
    def searchpath(self) -> list[str]:
        """The words that tell Hydra of the further folder."""
        if self.further is None:
            return []
        # In quotes: the name of a folder may hold what Hydra's grammar takes for its own.
        path = str(self.further.resolve()).replace("\\", "\\\\").replace("'", "\\'")
        return [f"hydra.searchpath=['file://{path}']"]

    @classmethod
    def given(cls, folder: str | None, name: str | None, further: str | None) -> Origin:
        """Returns the origin that command-line options name; None: ours.

        Raises:
            UserError: a folder or the primary config file does not exist.
        """
        own = cls()
        origin = cls(
            own.folder if folder is None else Path(folder),
            own.name if name is None else name.removesuffix(".yaml"),
            None if further is None else Path(further),
        )
        places = [place for place in (origin.folder, origin.further) if place is not None]
        for place in places:
            if not place.is_dir():
                raise UserError(f"there is no config folder '{place}'", "is it spelled right?")
        if not any((place / f"{origin.name}.yaml").is_file() for place in places):
            raise UserError(f"there is no '{origin.name}.yaml' in {places[0]}", "is it spelled right?")
        return origin


def choices(group: str) -> dict[str, str]:
    """Returns the options of a config group with their descriptions, the first comment line of each file."""
    return offered(group) | _written(group)


def offered(group: str) -> dict[str, str]:
    """Returns the metrics and criteria of other packages that have no file: `metrics=NAME`, `criterion=NAME`."""
    points = [point for name in _OFFERED.get(group, ()) for point in entry_points(group=name)]
    written = _written(group) if points else {}
    packages = {point.name: point.dist.name if point.dist else point.value for point in points}
    return {name: f"Of the package {package}" for name, package in packages.items() if name not in written}


def _written(group: str) -> dict[str, str]:
    folder = config_dir() / group
    files = sorted(folder.rglob("*.yaml"))
    return {file.relative_to(folder).with_suffix("").as_posix(): _description(file) for file in files}


def _description(file: Path) -> str:
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.removeprefix("#").strip()
    return ""
