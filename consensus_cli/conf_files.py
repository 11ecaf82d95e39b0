"""The folder `conf/`: where it lies, and which options each config group offers."""

from __future__ import annotations

from pathlib import Path


def config_dir() -> Path:
    """Returns the folder of the YAML files: inside an installed wheel, else at the top of the repository."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def choices(group: str) -> dict[str, str]:
    """Returns the options of a config group with their descriptions, the first comment line of each file."""
    files = sorted((config_dir() / group).glob("*.yaml"))
    return {file.stem: _description(file) for file in files}


def _description(file: Path) -> str:
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.removeprefix("#").strip()
    return ""
