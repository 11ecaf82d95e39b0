"""From words on the command line to typed configurations; every mistake is a `UserError`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from consensus_cli.config import launchers, schema
from consensus_cli.config.conf_files import Origin
from consensus_cli.config.mistakes import COMPOSING, explain, parsed, wrong_type
from consensus_cli.config.options import find, keys
from consensus_cli.config.overrides import check_overrides, opened
from consensus_cli.config.schema import AttackSettings, RunConfig
from consensus_cli.errors import ConfigError, UserError
from consensus_cli.models.paths import expanded


def compose_run(words: Sequence[str]) -> RunConfig:
    """Composes one configuration from overrides such as `model=resnet20`.

    Raises:
        UserError: unknown group option or key, a value of the wrong type, a missing value.
    """
    return compose_runs(words, multirun=False)[0]


def compose_runs(words: Sequence[str], *, multirun: bool, origin: Origin | None = None) -> list[RunConfig]:
    """Composes the configuration of every run that the overrides ask for, with `multirun` sweeps (`ratio=0.25,0.5`).

    Raises:
        UserError: unknown group option or key, a value of the wrong type, a missing value.
    """
    origin = origin or Origin()
    check_overrides(words, multirun=multirun, own_files=origin.own)
    with hydra_started(origin) as started:
        jobs = _jobs(words, started) if multirun else [list(words)]
        return [_compose(job, origin) for job in jobs]


@contextmanager
def hydra_started(origin: Origin) -> Iterator[Any]:
    """Starts Hydra on these files and yields it: its class is private, but nothing public starts jobs of given words.

    `tests/test_launchers.py` notices when what is called on it changes.
    """
    schema.register()
    launchers.register()
    with initialize_config_dir(str(origin.folder.resolve()), job_name="consensus", version_base="1.3"):
        yield GlobalHydra.instance().hydra


def _jobs(words: Sequence[str], started: Any) -> list[list[str]]:
    values = {}
    # Patterns such as `model=glob(resnet*)` are filled in by Hydra's own list of options.
    for override in OverridesParser.create(config_loader=started.config_loader).parse_overrides(list(words)):
        key = override.get_key_element()
        sweeps = override.is_sweep_override()
        texts = override.sweep_string_iterator() if sweeps else [override.get_value_element_as_str()]
        values[key] = [f"{key}={text}" for text in texts]
    # As Hydra's sweeper does: of a key that is given twice the last one counts.
    jobs = [list(job) for job in itertools.product(*values.values())]
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
    _read_text(run_config)
    # A target is reached as a whole, whatever ratio the defaults hold.
    run_config.ratio = _ratio(run_config.ratio) if run_config.prune.target is None else 1.0
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


def _attack(name: str, settings: Any) -> AttackSettings | UserError:
    key, names = f"attacks.suite.{name}", ", ".join(item.name for item in fields(AttackSettings))
    hint = f"write {key}={{name: pgd, eps255: 8, steps: 20}}; keys: {names}"
    if not isinstance(settings, dict):
        return UserError(f"{key}={settings!r} is not an attack", hint)
    if "name" not in settings:
        return UserError(f"{key}.name is missing", hint)
    try:
        attack = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(AttackSettings), settings))
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0]
        if str(error.key) in settings and find(f"{key}.{error.key}"):
            message = wrong_type(f"{key}.{error.key}", str(settings[str(error.key)])).message
        return UserError(message, hint)
    assert isinstance(attack, AttackSettings)
    return attack


def _ratio(value: Any) -> float | list[float]:
    """Returns a number as float and a list of them as such, a list of one as the number: they hash alike.

    Rounded to ten digits, because `range(0.2,0.9,0.1)` gives 0.30000000000000004, which is meant to be 0.3.
    """
    values = value if isinstance(value, list) else [value]
    try:
        rounded = [round(float(share), 10) for share in values if not isinstance(share, bool)]
    except (TypeError, ValueError):
        rounded = []
    if not rounded or len(rounded) < len(values):
        plain = isinstance(value, str | int | float | list | dict | None)
        raise wrong_type("ratio", str(value) if plain else "${…} of several settings")
    return rounded if len(rounded) > 1 else rounded[0]


def _read_text(run_config: RunConfig) -> None:
    """Turns text into what its key takes, where a reference gave it: the environment holds text alone (`[1,128]`).

    OmegaConf converts single values, no lists, and nothing where the schema is open (`ratio`, `compile`).
    """
    for key in keys():
        option = find(key)
        *path, name = key.split(".")
        node = functools.reduce(getattr, path, run_config)
        value = getattr(node, name)
        if option is None or option.text or not isinstance(value, str):
            continue
        override = parsed(f"{key}={value}")
        try:
            # A fresh schema knows the type, and takes nothing else.
            taken = OmegaConf.structured(RunConfig)
            OmegaConf.update(taken, key, override.value() if override is not None else value, merge=False)
        except OmegaConfBaseException as error:
            raise wrong_type(key, value) from error
        meant = OmegaConf.select(taken, key)
        setattr(node, name, OmegaConf.to_container(meant) if OmegaConf.is_config(meant) else meant)


def _compose(words: list[str], origin: Origin) -> RunConfig:
    words = [*map(opened, words), *origin.searchpath]
    try:
        composed = to_run_config(compose(origin.name, words))
        if composed.prune.target is not None and (given := [word for word in words if word.startswith("ratio=")]):
            raise UserError(
                f"{given[-1]} and prune.target={composed.prune.target} are both given: how much is to go?",
                "leave one of them out",
            )
        return composed
    except COMPOSING as error:
        # Hydra stops at the first override it cannot merge; each on its own shows the others. The launcher and the
        # user's folder stay with them: which keys there are depends on them.
        kept = [word for word in words if word.startswith((f"{launchers.GROUP}=", "hydra.searchpath="))]
        problems = []
        for word in words:
            try:
                compose(origin.name, [*kept, word])
            except COMPOSING as alone:
                problems.append(explain(alone))
        raise ConfigError(problems or [explain(error)]) from error
