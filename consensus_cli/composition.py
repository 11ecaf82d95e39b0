"""From words on the command line to typed configurations, with every mistake told as a `UserError`.

Hydra composes; what it would report with a traceback or one at a time is looked up here first.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import ConfigCompositionException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from consensus_cli import conf_files, config, launchers
from consensus_cli.config import AttackConfig, RunConfig
from consensus_cli.errors import ConfigError, UserError, unknown_name

#: dotted prefixes below which a user may name keys of their own
_OPEN = ("model.kwargs.", "metrics.weights.", "attacks.suite.", "evaluate.shift.")


def compose_run(words: Sequence[str]) -> RunConfig:
    """Composes one configuration from overrides such as `model=resnet20`.

    Raises:
        UserError: unknown group option or key, a value of the wrong type, a missing value.
    """
    return compose_runs(words, multirun=False)[0]


def compose_runs(words: Sequence[str], *, multirun: bool, searchpath: str | None = None) -> list[RunConfig]:
    """Composes the configuration of every run that the overrides ask for.

    Args:
        words: overrides; with `multirun` their values may be sweeps (`ratio=0.25,0.5`).
        multirun: whether sweeps are allowed.
        searchpath: a folder of the user's with further config files.

    Raises:
        UserError: unknown group option or key, a value of the wrong type, a missing value.
    """
    overrides = check_overrides(words, multirun=multirun, searchpath=searchpath)
    jobs = BasicSweeper.split_arguments(overrides, max_batch_size=None)[0] if multirun else [list(words)]
    path = [f"hydra.searchpath=[file://{searchpath}]"] if searchpath else []
    config.register()
    launchers.register()
    with initialize_config_dir(str(conf_files.config_dir()), version_base="1.3"):
        return [_compose([*job, *path]) for job in jobs]


def check_overrides(words: Sequence[str], *, multirun: bool, searchpath: str | None = None) -> list[Override]:
    """Returns the overrides after checking what they name, not yet their values; arguments as in `compose_runs`.

    Raises:
        UserError: names every override that cannot be read, or that names what there is not.
    """
    overrides = _parse(words)
    problems = [problem for override in overrides for problem in _override_problems(override, multirun, searchpath)]
    if not multirun:
        problems += [
            UserError(f"{o.input_line} names several values", "sweep over them with: consensus run -m …")
            for o in overrides
            if o.is_sweep_override()
        ]
    if problems:
        raise ConfigError(problems)
    return overrides


def to_run_config(composed: DictConfig) -> RunConfig:
    """Returns the typed configuration.

    Raises:
        UserError: names every value that is missing.
    """
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError([UserError(f"{key} is missing", f"give it: {key}=…") for key in missing])
    run_config = OmegaConf.to_object(composed)
    assert isinstance(run_config, RunConfig)
    run_config.ratio = _ratio(run_config.ratio)
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
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"'{path}' is no configuration of a run: {error}", "name a run directory below runs/"
        ) from error


def _attack(name: str, settings: Any) -> AttackConfig | UserError:
    key = f"attacks.suite.{name}"
    hint = f"write {key}={{name: pgd, eps255: 8, steps: 20}}; keys: {', '.join(f.name for f in fields(AttackConfig))}"
    if not isinstance(settings, dict):
        return UserError(f"{key}={settings!r} is no attack", hint)
    if "name" not in settings:
        return UserError(f"{key}.name is missing", hint)
    try:
        attack = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(AttackConfig), settings))
    except OmegaConfBaseException as error:
        return UserError(f"{key}: {str(error).splitlines()[0]}", hint)
    assert isinstance(attack, AttackConfig)
    return attack


def _ratio(value: Any) -> float | list[float]:
    """Returns a number as float and a list of them as such, a list of one as the number: they hash alike.

    Rounded to ten digits, because `range(0.2,0.9,0.1)` gives 0.30000000000000004, which is meant to be 0.3.
    """
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(share, (int, float)) and not isinstance(share, bool) for share in values):
        raise UserError(
            f"ratio={value!r} is no number and no list of numbers",
            "write ratio=0.5, or ratio=[0.25,0.5]; consensus run --cfg job shows the types in use",
        )
    rounded = [round(float(share), 10) for share in values]
    return rounded if len(rounded) > 1 else rounded[0]


def _parse(words: Sequence[str]) -> list[Override]:
    overrides, problems = [], []
    for word in words:
        try:
            overrides += OverridesParser.create().parse_overrides([word])
        except OverrideParseException:
            problems.append(UserError(f"cannot read '{word}'", "settings are written key=value, such as ratio=0.5"))
    if problems:
        raise ConfigError(problems)
    return overrides


def _override_problems(override: Override, multirun: bool, searchpath: str | None) -> Iterator[UserError]:
    key = override.key_or_group
    if key.startswith("hydra"):
        yield from launchers.problems(override, multirun=multirun, own_configs=searchpath is not None)
    elif override.is_delete() and key != "experiment":
        yield UserError(f"{override.input_line} would delete a setting", f"give it another value: {key}=…")
    elif key in config.GROUPS:
        # Options of the user's own folder are known to Hydra alone.
        if searchpath is None:
            yield from _option_problems(key, override)
    elif key not in set(config.keys()) and not _is_open(key):
        yield _unknown_key(key)


def _option_problems(group: str, override: Override) -> Iterator[UserError]:
    value = override.value()
    named = value.list if isinstance(value, ChoiceSweep) else [value]
    options = conf_files.choices(group)
    for choice in named:
        if isinstance(choice, list) and group != "metrics":
            yield UserError(f"{group}={choice} names several options", f"{group} takes one; only metrics takes a list")
            continue
        for name in choice if isinstance(choice, list) else [choice]:
            if name is not None and str(name) not in options:
                yield unknown_name(group, str(name), options)


def _unknown_key(key: str) -> UserError:
    known = sorted(config.keys())
    parent = key.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == parent] or [k for k in known if "." not in k]
    nearest = difflib.get_close_matches(key, known, n=1)
    suggestion = f"did you mean '{nearest[0]}'? " if nearest else ""
    return UserError(f"unknown config key '{key}'", f"{suggestion}valid here: {', '.join(siblings)}")


def _is_open(key: str) -> bool:
    if key.startswith("attacks.suite."):
        below = key.removeprefix("attacks.suite.").split(".")
        return len(below) == 1 or (len(below) == 2 and below[1] in {f.name for f in fields(AttackConfig)})
    return key.startswith(_OPEN)


def _compose(words: list[str]) -> RunConfig:
    words = [opened(word) for word in words]
    try:
        return to_run_config(compose("config", words))
    except (ConfigCompositionException, OmegaConfBaseException) as error:
        # Hydra stops at the first override it cannot merge; each on its own shows the others. The launcher stays with
        # them: which keys hydra.launcher has depends on it.
        launcher = [word for word in words if word.startswith(f"{launchers.GROUP}=")]
        alone = [problem for word in words if (problem := _composition_problem([*launcher, word])) is not None]
        raise ConfigError(alone or [explain(error)]) from error


def opened(word: str) -> str:
    """Returns an override as Hydra wants it: new keys of a dictionary that is open to them need a `++`."""
    key = word.partition("=")[0]
    return f"++{word}" if f"{key}.".startswith(_OPEN) else word


def _composition_problem(words: list[str]) -> UserError | None:
    try:
        compose("config", words)
    except (ConfigCompositionException, OmegaConfBaseException) as error:
        return explain(error)
    return None


def explain(error: Exception) -> UserError:
    """Returns what Hydra or OmegaConf says of an override, in one line with a hint."""
    message = str(error).removeprefix("Error merging override ").removeprefix("++").splitlines()[0]
    if isinstance(error.__cause__, OmegaConfBaseException) and "=" in message:
        return UserError(
            f"{message}: {str(error.__cause__).splitlines()[0]}", "consensus run --cfg job shows the types in use"
        )
    further = [line for line in str(error).splitlines()[1:] if line.strip()]
    return UserError(message.rstrip("."), further[0] if further else "consensus run --cfg job shows what can be set")
