"""What `hydra/launcher=` may name: plugins of Hydra that start the runs of a sweep in processes and on machines."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins

from consensus_cli.config import conf_files
from consensus_cli.errors import UserError, unknown_name

#: the config group of the launchers
GROUP = "hydra/launcher"

#: settings of Hydra's that would change what a command is, and what to do instead
_REFUSED = {
    "hydra": "consensus run --cfg hydra shows its settings",
    "hydra.mode": "a sweep is started with: consensus run -m …",
    "hydra.job.chdir": "paths are relative to where the command was started; choose the folder with output_dir=PATH",
}

#: Hydra's own launcher: one run after the other in this process
BASIC = "basic"

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


def problems(override: Override, *, multirun: bool, own_configs: bool, chosen: object = BASIC) -> Iterator[UserError]:
    """Yields what is wrong with an override of one of Hydra's own settings.

    Args:
        override: an override whose key starts with `hydra`.
        multirun: whether a sweep was asked for.
        own_configs: whether the user has a config folder, whose launchers are known to Hydra alone.
        chosen: what `hydra/launcher=` says.
    """
    key, said = override.key_or_group, override.input_line
    if key in _REFUSED:
        yield UserError(f"{said} is not supported", _REFUSED[key])
    elif override.is_delete():
        yield UserError(f"{said} would delete a setting of Hydra's", f"give it another value: {key}=…")
    elif key == "hydra/sweeper" and override.value() != BASIC:
        # The results of the runs, and so the exit code, come back through Hydra's own sweeper.
        yield UserError(f"{said} is not supported", "name the values: ratio=0.25,0.5")
    elif key == "hydra.searchpath":
        yield from _searchpath_problems(override.value())
    elif key == GROUP and not isinstance(override.value(), str):
        yield UserError(f"{said} does not name one launcher", f"name one: {', '.join([BASIC, *PLUGINS])}")
    elif key == "hydra.launcher":
        yield UserError(f"{said} does not choose a launcher", f"write {GROUP}={override.value()}")
    elif key.startswith((GROUP, "hydra.launcher")) and not multirun:
        yield UserError(f"{said} starts the runs of a sweep", "sweep with: consensus run -m …")
    elif key.startswith("hydra.launcher.") and chosen == BASIC and not own_configs:
        yield UserError(f"{said} sets something of a launcher, and none is chosen", f"choose it: {GROUP}=joblib {said}")
    elif key == GROUP and not own_configs:
        yield from _launcher_problems(str(override.value()))


def _searchpath_problems(value: object) -> Iterator[UserError]:
    if not isinstance(value, list):
        yield UserError(f"hydra.searchpath={value} is not a list of folders", "write hydra.searchpath=[file://FOLDER]")
        return
    for entry in map(str, value):
        if not entry.startswith("pkg://") and not Path(entry.removeprefix("file://")).is_dir():
            yield UserError(f"hydra.searchpath: there is no folder '{entry}'", "is it spelled right?")


def _launcher_problems(name: str) -> Iterator[UserError]:
    known = conf_files.choices(GROUP)
    if name not in {BASIC, *known}:
        yield unknown_name("launcher", name, {BASIC, *known})
    elif name != BASIC:
        module, extra = PLUGINS[name]
        if not _installed(module):
            yield UserError(
                f"{GROUP}={name} needs a plugin that is not installed",
                f"install the extra: pip install 'consensus-cli[{extra}]'",
            )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # Without any plugin there is no package hydra_plugins either.
        return False
