"""`hydra/launcher=`: what it may name, what is told where a plugin is missing, and real sweeps in other processes."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from helpers.quick import QUICK
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from consensus_cli.cli.main import main
from consensus_cli.config import composition, conf_files, launchers, schema
from consensus_cli.config.composition import hydra_started
from consensus_cli.config.conf_files import Origin
from consensus_cli.models.resnet import ResNet

#: a run of a few seconds: one epoch on few images, no metric, no attack, no fine-tuning
TINY = (*QUICK, "baseline.epochs=1", "dataset.limit_train=200", "criterion=first", "attacks=none", "ratio=0.17")
TINY += ("finetune.epochs_per_step=0", "finetune.final_epochs=0")

#: in the sweeps, how many runs go on at once
PARALLEL = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": [],
    "ray": ["hydra.launcher.ray.init.num_cpus=2"],
}

#: what our configs add to the plugins' own
OURS: dict[str, dict[str, object]] = {
    "joblib": {"n_jobs": 2, "batch_size": "1", "backend": None},
    "submitit_local": {"timeout_min": 1440, "nodes": 1},
    "submitit_slurm": {"timeout_min": 720, "max_num_timeout": 5, "partition": None},
    "ray": {"ray.init.object_store_memory": None, "ray.remote.max_retries": 3},
}


def hydra_config(*words: str) -> DictConfig:
    schema.register()
    launchers.register()
    with initialize_config_dir(str(conf_files.config_dir()), version_base="1.3"):
        composed: DictConfig = compose("config", list(words), return_hydra_config=True).hydra
        return composed


def test_the_configs_and_the_plugins_name_the_same_launchers() -> None:
    assert set(conf_files.choices(launchers.GROUP)) == set(launchers.PLUGINS)


@pytest.mark.parametrize("name", launchers.PLUGINS)
def test_every_launcher_composes_into_the_settings_of_its_plugin(name: str) -> None:
    pytest.importorskip(launchers.PLUGINS[name][0], reason=f"extra [{launchers.PLUGINS[name][1]}] is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        composed = hydra_config(f"hydra/launcher={name}").launcher
    module, class_name = composed._target_.rsplit(".", 1)
    assert module.startswith(launchers.PLUGINS[name][0])
    assert hasattr(importlib.import_module(module), class_name)
    for key, value in OURS[name].items():
        assert OmegaConf.select(composed, key, throw_on_missing=True) == value


def test_what_is_called_on_hydras_private_class_is_as_before() -> None:
    with hydra_started(Origin()) as started:
        called = {
            "run": ["config_name", "task_function", "overrides", "with_log_configuration"],
            "multirun": ["config_name", "task_function", "overrides", "with_log_configuration"],
            "show_info": ["info", "config_name", "overrides", "run_mode"],
        }
        for name, arguments in called.items():
            assert list(inspect.signature(getattr(started, name)).parameters) == arguments
        words = ["seed=0,1", "ratio=0.5", "model=glob(resnet2*)", "seed=2,3"]
        parsed = OverridesParser.create(config_loader=started.config_loader).parse_overrides(words)
        # What is checked before a sweep is what Hydra's own sweeper then runs.
        (swept,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        assert composition._jobs(words, started) == swept


def test_a_setting_of_the_wrong_type_is_told_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert main(["run", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=two"]) == 2
    error, _ = capsys.readouterr().err.splitlines()
    assert "'two'" in error


@pytest.mark.parametrize(("name", "extra"), [("joblib", "joblib"), ("submitit_slurm", "slurm"), ("ray", "ray")])
def test_a_missing_plugin_is_one_line_and_the_extra_that_installs_it(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, launchers.PLUGINS[name][0], None)
    assert main(["run", "-m", f"hydra/launcher={name}", "seed=0,1"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == f"error: hydra/launcher={name} needs a plugin that is not installed"
    assert f"pip install 'consensus-cli[{extra}]'" in hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["-m", "hydra/launcher=jobib"], "'hydra/launcher/jobib'", "joblib"),
        (["hydra/launcher=joblib"], "is for the runs of a sweep", "consensus run -m"),
        (["hydra.launcher.n_jobs=2"], "is for the runs of a sweep", "consensus run -m"),
        (
            ["-m", "hydra/launcher=basic", "hydra.launcher.n_jobs=2"],
            "'hydra.launcher.n_jobs'",
            "consensus run --cfg hydra",
        ),
        (["-m", "hydra/sweeper=optuna", "ratio=0.2,0.4"], "hydra/sweeper=optuna is not supported", "ratio=0.25,0.5"),
    ],
)
def test_mistakes_about_launchers_are_one_line_and_a_hint(
    words: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *words]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2, told
    assert message in told[0]
    assert hint in told[1]


def test_another_mistake_does_not_blame_the_launchers_settings(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert main(["run", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "ratio=abc"]) == 2
    error, _ = capsys.readouterr().err.splitlines()
    assert "'abc'" in error


class DiesElsewhere(ResNet):
    """A network that ends every process but the one that checks the configuration, as a lack of memory would."""

    def __init__(self, process: int) -> None:
        super().__init__(3, num_classes=10, in_channels=1)
        if os.getpid() != process:
            os._exit(9)


@pytest.fixture
def launcher(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """The words that choose a launcher, with what its processes need; skips where its plugin is not installed."""
    name = request.param
    pytest.importorskip(launchers.PLUGINS[name][0], reason=f"extra [{launchers.PLUGINS[name][1]}] is not installed")
    root = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), str(root / "tests")]))
    # Ray keeps a token in the home folder, and reads it once in a process.
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp()))
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    yield [f"hydra/launcher={name}", *PARALLEL[name]]
    if "ray" in sys.modules:
        importlib.import_module("ray").shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", PARALLEL, indirect=True)
def test_a_sweep_in_other_processes_gives_a_row_per_run_and_one_baseline_per_seed(
    launcher: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = tmp_path / "out"
    assert main(["run", "-m", *launcher, *TINY, "criterion=first,last", "seed=0,1", f"output_dir={out}"]) == 0
    rows = pd.read_csv(out / "results.csv")
    asked = [("first", 0), ("first", 1), ("last", 0), ("last", 1)]
    assert sorted(zip(rows["criterion"], rows["seed"], strict=True)) == asked
    assert set(rows["status"]) == {"done"}
    assert rows.groupby("seed")["accuracy_base_pct"].nunique().tolist() == [1, 1]
    assert len(list((out / "baselines").glob("*.safetensors"))) == 2
    # Runs that go on at once must not each take every core.
    assert set(rows["threads"]) == {max(1, (os.cpu_count() or 1) // 2) if "hydra/launcher=joblib" in launcher else 1}
    # No progress bar in this terminal: several would overwrite each other.
    assert "\x1b[?25l" not in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("launcher", PARALLEL, indirect=True)
def test_in_another_process_a_failed_run_leaves_its_row_the_others_end_and_the_exit_code_is_1(
    launcher: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [*launcher, *TINY, "baseline.learning_rate=1e30,0.1", f"output_dir={out}"]
    assert main(["run", "-m", *words]) == 1
    rows = pd.read_csv(out / "results.csv").set_index("status")
    assert sorted(rows.index) == ["done", "failed"]
    assert "baseline.learning_rate=1e+30" in rows.loc["failed", "overrides"]
    (told,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert "baseline.learning_rate=1e+30" in told
    assert "the training loss is" in told


@pytest.mark.slow
@pytest.mark.parametrize("launcher", PARALLEL, indirect=True)
def test_a_process_that_dies_is_told_in_one_line_and_the_exit_code_is_1(
    launcher: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = ["model=custom", "model.target=test_launchers.DiesElsewhere", f"+model.kwargs.process={os.getpid()}"]
    retries = ["hydra.launcher.ray.remote.max_retries=0"] if "hydra/launcher=ray" in launcher else []
    words = [*launcher, *retries, *TINY[1:], *model, f"output_dir={tmp_path / 'out'}"]
    assert main(["run", "-m", *words]) == 1
    told = capfd.readouterr().err
    assert "error: a run's process ended before the run did: " in told
    assert "hint: the same command again" in told


def test_the_settings_of_a_launcher_are_shown_without_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", f"{launchers.GROUP}=basic", "--cfg", "hydra", "--package", "hydra.launcher"]) == 0
    assert "BasicLauncher" in capsys.readouterr().out
