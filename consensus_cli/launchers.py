"""What `hydra/launcher=` may name: plugins of Hydra that start the runs of a sweep in processes and on machines."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins

from consensus_cli import conf_files
from consensus_cli.errors import UserError, unknown_name

#: the config group of the launchers
GROUP = "hydra/launcher"

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


def problems(override: Override, *, multirun: bool, own_configs: bool) -> Iterator[UserError]:
    """Yields what is wrong with an override of one of Hydra's own settings.

    Args:
        override: an override whose key starts with `hydra`.
        multirun: whether a sweep was asked for.
        own_configs: whether the user has a config folder, whose launchers are known to Hydra alone.
    """
    key = override.key_or_group
    if key == "hydra/sweeper" and override.value() != BASIC:
        # The results of the runs, and so the exit code, come back through Hydra's own sweeper.
        yield UserError(f"hydra/sweeper={override.value()} is not supported", "name the values: ratio=0.25,0.5")
    if not key.startswith((GROUP, "hydra.launcher")):
        return
    if not multirun:
        yield UserError(f"{override.input_line} starts the runs of a sweep", "sweep with: consensus run -m …")
    elif key == GROUP and not own_configs:
        yield from _launcher_problems(str(override.value()))


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
