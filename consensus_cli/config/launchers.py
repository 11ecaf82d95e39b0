"""What `hydra/launcher=` may name: plugins of Hydra that start the runs of a sweep in processes and on machines."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins

from consensus_cli.errors import UserError

#: the config group of the launchers
GROUP = "hydra/launcher"

#: settings of Hydra's that would change what a command is, and what to do instead
_REFUSED = {
    "hydra": "consensus run --cfg hydra shows its settings",
    "hydra.mode": "a sweep is started with: consensus run -m …",
    # The results of the runs, and so the exit code, come back through Hydra's own sweeper.
    "hydra/sweeper": "name the values: ratio=0.25,0.5",
    "hydra.launcher": f"choose a launcher: {GROUP}=joblib",
    "hydra.job.chdir": "paths are relative to where the command was started; choose the folder with output_dir=PATH",
}

#: launcher -> (module of its plugin, extra that installs it)
PLUGINS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "joblib"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
}


def register() -> None:
    """Keeps the plugins' own configs as `NAME_plugin`; ours, which have the plain names, build on them.

    With the same name Hydra would merge the two by itself, and warn that a later version will not.
    """
    # Plugins store their configs when they are first looked for.
    Plugins.instance()
    stored = ConfigStore.instance().repo["hydra"]["launcher"]
    for name in PLUGINS:
        if f"{name}.yaml" in stored:
            stored[f"{name}_plugin.yaml"] = stored.pop(f"{name}.yaml")


def problems(override: Override, *, multirun: bool) -> Iterator[UserError]:
    """Yields what is wrong with an override of one of Hydra's own settings, in a sweep or not."""
    key, said, value = override.key_or_group, override.input_line, override.value()
    if key in _REFUSED or override.is_delete() or (key == GROUP and not isinstance(value, str)):
        yield UserError(f"{said} is not supported", _REFUSED.get(key, f"give it another value: {key}=…"))
    elif key == "hydra.searchpath":
        for folder in map(str, value if isinstance(value, list) else [value]):
            if not folder.startswith("pkg://") and not Path(folder.removeprefix("file://")).is_dir():
                yield UserError(f"hydra.searchpath: there is no folder '{folder}'", "write [file://FOLDER]")
    elif key.startswith((GROUP, "hydra.launcher")) and not multirun:
        yield UserError(f"{said} is for the runs of a sweep", f"sweep with: consensus run -m {said}")
    elif key == GROUP and str(value) in PLUGINS and not _installed(PLUGINS[str(value)][0]):
        yield UserError(
            f"{said} needs a plugin that is not installed",
            f"install the extra: pip install 'consensus-cli[{PLUGINS[str(value)][1]}]'",
        )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # Without any plugin there is no package hydra_plugins either.
        return False
