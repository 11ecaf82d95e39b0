"""From words on the command line to typed configurations, with every mistake told as a `UserError`.

Hydra composes; what it would report with a traceback or one at a time is looked up in `overrides` first.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from consensus_cli.config import launchers, repairs, schema
from consensus_cli.config.conf_files import Origin
from consensus_cli.config.explanations import COMPOSING, explain, wrong_type
from consensus_cli.config.overrides import check_overrides, opened
from consensus_cli.config.schema import AttackConfig, RunConfig
from consensus_cli.config.value_types import expected
from consensus_cli.errors import ConfigError, UserError
from consensus_cli.models.paths import expanded

#: keys of any type in the schema whose values `validation` and this module tell of themselves
_CHECKED_LATER = ("ratio", "compile")


def compose_run(words: Sequence[str]) -> RunConfig:
    """Composes one configuration from overrides such as `model=resnet20`.

    Raises:
        UserError: unknown group option or key, a value of the wrong type, a missing value.
    """
    return compose_runs(words, multirun=False)[0]


def compose_runs(words: Sequence[str], *, multirun: bool, origin: Origin | None = None) -> list[RunConfig]:
    """Composes the configuration of every run that the overrides ask for.

    Args:
        words: overrides; with `multirun` their values may be sweeps (`ratio=0.25,0.5`).
        multirun: whether sweeps are allowed.
        origin: where the config files lie; None: ours alone.

    Raises:
        UserError: unknown group option or key, a value of the wrong type, a missing value.
    """
    origin = origin or Origin()
    origin.check()
    check_overrides(words, multirun=multirun, own_files=origin.own)
    schema.register()
    launchers.register()
    with initialize_config_dir(str(origin.folder.resolve()), version_base="1.3"):
        return [_compose(job, origin) for job in _jobs(words, multirun)]


def _jobs(words: Sequence[str], multirun: bool) -> list[list[str]]:
    if not multirun:
        return [list(words)]
    # Patterns such as `model=glob(resnet*)` are filled in by Hydra's own list of options.
    started = GlobalHydra.instance().hydra
    assert started is not None
    overrides = OverridesParser.create(config_loader=started.config_loader).parse_overrides(list(words))
    jobs: list[list[str]] = BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]
    if not jobs:
        raise UserError("the sweep is empty: its patterns fit no option", "consensus list shows the options")
    return jobs


def to_run_config(composed: DictConfig) -> RunConfig:
    """Returns the typed configuration, with every reference to the environment and to other settings filled in.

    Raises:
        UserError: names every value that is missing or of another type.
    """
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError([UserError(f"{key} is missing", f"give it: {key}=…") for key in missing])
    try:
        run_config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    assert isinstance(run_config, RunConfig)
    _fill_in(run_config)
    run_config.ratio = _ratio(run_config.ratio)
    if run_config.output_dir.startswith("~"):
        run_config.output_dir = str(expanded(run_config.output_dir))
    suite = {name: _attack(name, plain) for name, plain in run_config.attacks.suite.items()}
    if problems := [attack for attack in suite.values() if isinstance(attack, UserError)]:
        raise ConfigError(problems)
    run_config.attacks.suite = suite
    return run_config


def from_plain(settings: Any) -> RunConfig:
    """Returns the typed configuration of nested plain values, as `dataclasses.asdict` or its YAML give them.

    Raises:
        UserError: a value that no run can have.
        OmegaConfBaseException: keys or types that the schema does not know.
    """
    return to_run_config(OmegaConf.merge(OmegaConf.structured(RunConfig), settings))  # type: ignore[arg-type]


def read_config(path: Path) -> RunConfig:
    """Reads the resolved configuration of a run back from its `config.yaml`.

    Raises:
        UserError: the file is missing or holds something else.
    """
    try:
        return from_plain(OmegaConf.load(path))
    except (UserError, OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"'{path}' is not the configuration of a run: {error}", "name a run directory below runs/"
        ) from error


def _attack(name: str, settings: Any) -> AttackConfig | UserError:
    key = f"attacks.suite.{name}"
    hint = f"write {key}={{name: pgd, eps255: 8, steps: 20}}; keys: {', '.join(f.name for f in fields(AttackConfig))}"
    if not isinstance(settings, dict):
        return UserError(f"{key}={settings!r} is not an attack", hint)
    if "name" not in settings:
        return UserError(f"{key}.name is missing", hint)
    try:
        attack = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(AttackConfig), settings))
    except OmegaConfBaseException as error:
        takes, said = expected(f"{key}.{error.key}"), settings.get(str(error.key))
        if takes is None:
            return UserError(f"{key}: {str(error).splitlines()[0]}", hint)
        return UserError(f"{key}.{error.key}={said!r} is not {takes.words}", hint)
    assert isinstance(attack, AttackConfig)
    return attack


def _ratio(value: Any) -> float | list[float]:
    """Returns a number as float and a list of them as such, a list of one as the number: they hash alike.

    Rounded to ten digits, because `range(0.2,0.9,0.1)` gives 0.30000000000000004, which is meant to be 0.3.
    """
    values = value if isinstance(value, list) else [value]
    try:
        rounded = [round(_number(share), 10) for share in values]
    except (TypeError, ValueError):
        rounded = []
    if not rounded:
        takes = expected("ratio")
        assert takes is not None
        plain = isinstance(value, str | int | float | list | dict | None)
        raise wrong_type("ratio", str(value) if plain else "${…} of several settings", takes)
    return rounded if len(rounded) > 1 else rounded[0]


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError(f"{value} is not a number")
    return float(value)


def _fill_in(run_config: RunConfig) -> None:
    """Turns text into what its key takes, where a reference gave it: the environment holds text alone (`[1,128]`).

    OmegaConf converts single values, no lists, and nothing where the schema is open (`ratio`, `compile`).
    """
    for key in tuple(schema.keys()):
        takes = expected(key)
        *path, name = key.split(".")
        node = functools.reduce(getattr, path, run_config)
        value = getattr(node, name)
        if takes is None or takes.text or not isinstance(value, str):
            continue
        override = repairs.parsed(f"{key}={value}")
        meant = None if override is None or override.is_sweep_override() else override.value()
        if takes.fits(meant):
            setattr(node, name, meant)
        elif key not in _CHECKED_LATER:
            raise wrong_type(key, value, takes)


def _compose(words: list[str], origin: Origin) -> RunConfig:
    words = [*map(opened, words), *origin.searchpath]
    try:
        return to_run_config(compose(origin.name, words))
    except COMPOSING as error:
        # Hydra stops at the first override it cannot merge; each on its own shows the others. The launcher and the
        # user's folder stay with them: which keys there are depends on them.
        kept = [word for word in words if word.startswith((f"{launchers.GROUP}=", "hydra.searchpath="))]
        tried = [_composition_problem([*kept, word], origin) for word in words if word not in kept]
        alone = [problem for problem in tried if problem is not None]
        raise ConfigError(alone or [explain(error)]) from error


def _composition_problem(words: list[str], origin: Origin) -> UserError | None:
    try:
        compose(origin.name, words)
    except COMPOSING as error:
        return explain(error)
    return None
