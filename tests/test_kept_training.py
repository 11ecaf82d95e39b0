"""A training that was stopped goes on at the end of an epoch, and ends as one that was not."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.keeping import Memory, Stopped, stopping_at
from helpers.quick import QUICK
from helpers.stopping import stop_run
from helpers.tiny import CPU, bright_or_dark
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.multiprocessing import spawn

from consensus_cli.cli.main import main
from consensus_cli.data.share import ALL, Share
from consensus_cli.data.split import Augmentation
from consensus_cli.evaluation.cost.energy import Consumption, EnergyMeter, Reading
from consensus_cli.experiment import kept_training
from consensus_cli.experiment.kept_training import Clock, KeptTraining
from consensus_cli.models.classifier import Classifier
from consensus_cli.screen import Screen, events
from consensus_cli.storage.results import read_rows
from consensus_cli.storage.rundir import RunDir
from consensus_cli.storage.state import RunState
from consensus_cli.training import Progress, Recipe, TrainingResult, train

#: 128 images: 8 updates an epoch
RECIPE = Recipe(epochs=3.5, learning_rate=0.1, schedule="onecycle", batch_size=16)


class Drifting(nn.Module):
    """Changes a buffer in training that is not saved with the network, as moving averages are in some."""

    def __init__(self) -> None:
        super().__init__()
        self.drift: Tensor
        self.register_buffer("drift", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.drift += 0.01
        return x + self.drift


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(0.3), Drifting(), nn.Linear(16, 2))


def trained(
    recipe: Recipe, keeper: Memory | None = None, *, stop_at: int = 0, share: Share = ALL, **kwargs: object
) -> tuple[nn.Module, TrainingResult, list[Progress]]:
    model, reports = network(), list[Progress]()
    torch.manual_seed(1 + share.rank)
    result = train(
        model,
        bright_or_dark(),
        recipe,
        device=CPU,
        augmentation=Augmentation(pad=1, flip=True),
        keeper=keeper,
        report=reports.append,
        tick=stopping_at(stop_at),
        share=share,
        **kwargs,  # type: ignore[arg-type]
    )
    return model, result, reports


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = (dict(model.named_buffers()) | dict(model.named_parameters()) for model in (one, other))
    return all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("recipe", "stop_at", "goes_on_at"),
    [
        (RECIPE, 20, 16),
        (RECIPE, 26, 24),
        (replace(RECIPE, ema_decay=0.9), 20, 16),
        (replace(RECIPE, distill=0.5), 9, 8),
        # Micro-batches of 6: 21 in an epoch are 7 updates of three.
        (replace(RECIPE, batch_size=18, accumulate_batches=3), 20, 14),
        # Micro-batches of 8: every second epoch ends in the middle of an update of three.
        (replace(RECIPE, batch_size=24, accumulate_batches=3), 18, 16),
    ],
)
def test_a_stopped_training_ends_as_one_that_was_not(recipe: Recipe, stop_at: int, goes_on_at: int) -> None:
    teacher = network() if recipe.distill else None
    expected, result, reports = trained(recipe, teacher=teacher)
    keeper = Memory()
    with pytest.raises(Stopped):
        trained(recipe, keeper, stop_at=stop_at, teacher=teacher)
    torch.manual_seed(99)
    model, again, later = trained(recipe, keeper, teacher=teacher)
    assert same(model, expected)
    assert (again.loss, again.images) == (result.loss, result.images)
    assert later == [report for report in reports if report.update > goes_on_at]


def test_only_the_same_training_goes_on() -> None:
    keeper = Memory()
    with pytest.raises(Stopped):
        trained(RECIPE, keeper, stop_at=20)
    for other in (replace(RECIPE, learning_rate=0.05), replace(RECIPE, batch_size=32)):
        assert same(trained(other, keeper)[0], trained(other)[0])
    assert same(trained(RECIPE, keeper, seed=3)[0], trained(RECIPE, seed=3)[0])
    # What is kept at the very end is the network as it ends.
    _, _, reports = trained(RECIPE, keeper)
    assert reports[0].update == 17
    model, _, reports = trained(RECIPE, keeper)
    assert reports == []
    assert same(model, trained(RECIPE)[0])


def test_two_processes_go_on_together(tmp_path: Path) -> None:
    spawn(trained_by_two, args=(str(tmp_path),), nprocs=2)
    assert [(tmp_path / f"{rank}").read_text() for rank in (0, 1)] == ["True", "True"]


def trained_by_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    # What torchrun sets, and Accelerate reads.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    share, keeper = Share(rank, 2), Memory()
    expected = trained(RECIPE, share=share)[0]
    with pytest.raises(Stopped):
        trained(RECIPE, keeper, stop_at=20, share=share)
    assert bool(keeper.kept) == share.leads
    model, _, reports = trained(RECIPE, keeper, share=share)
    weights = zip(model.parameters(), expected.parameters(), strict=True)
    same_weights = all(torch.equal(mine, theirs) for mine, theirs in weights)
    Path(folder, str(rank)).write_text(str(same_weights and reports[0].update == 17))
    torch.distributed.destroy_process_group()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeptTraining:
    monkeypatch.setattr(kept_training, "LEAST_S", 0.0)
    monkeypatch.setattr(kept_training, "LEAST_RATIO", 0.0)
    return KeptTraining(tmp_path / "trainings", Clock(100.0), Screen())


def test_a_file_brings_back_the_training_its_time_and_what_it_used(
    kept: KeptTraining, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kept.read("0123") is None
    with Reading(EnergyMeter("BRA")) as reading, kept.during(reading):
        reading.go_on_from(Consumption(1.0, 2.0, 50.0))
        kept.write("0123", {"weights": torch.ones(2), "duration_s": 40.0})
    later = KeptTraining(kept.folder, Clock(5.0), Screen())
    with Reading(EnergyMeter("BRA")) as reading, later.during(reading):
        content = later.read("0123")
    assert content is not None
    assert content["weights"].tolist() == [1.0, 1.0]
    assert later.clock.duration_s() == pytest.approx(100, abs=5)
    assert (reading.used.kwh, reading.used.co2_kg) == (pytest.approx(1), pytest.approx(2))
    assert reading.used.duration_s == pytest.approx(50, abs=5)
    assert "training continues where it was stopped, after 40 s" in capsys.readouterr().out


def test_a_damaged_file_costs_the_training_and_no_run(kept: KeptTraining, capsys: pytest.CaptureFixture[str]) -> None:
    kept.write("0123", {"duration_s": 1.0})
    file = next(kept.folder.iterdir())
    whole = file.read_bytes()
    for content in (b"", b"torn", whole[: len(whole) // 2], b"\x80\x02c__builtin__\nprint\n."):
        file.write_bytes(content)
        assert kept.read("0123") is None
        assert "starts over" in capsys.readouterr().out
    assert kept.clock.duration_s() == pytest.approx(100, abs=5)


def test_a_folder_that_cannot_be_written_costs_no_run(kept: KeptTraining, capsys: pytest.CaptureFixture[str]) -> None:
    kept.folder.write_text("in the way")
    kept.write("0123", {"duration_s": 1.0})
    assert "could not be saved" in capsys.readouterr().out


def test_a_training_is_kept_now_and_then(kept: KeptTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept.is_due()
    monkeypatch.setattr(kept_training, "LEAST_S", 3600.0)
    kept.write("0123", {})
    assert not kept.is_due()


def test_another_version_of_the_code_begins_anew(kept: KeptTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.write("0123", {"duration_s": 1.0})
    assert kept.read("0123") is not None
    monkeypatch.setattr(kept_training, "code_hash_of_training", lambda: "other")
    assert kept.read("0123") is None


@pytest.mark.usefixtures("kept")
def test_trainings_that_fill_the_disk_go_before_the_run_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, refused = RunState.write, 0

    def full(state: RunState, path: Path, network: Classifier) -> None:
        nonlocal refused
        if (path.parent / "trainings").exists():
            refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        write(state, path, network)

    monkeypatch.setattr(RunState, "write", full)
    assert main(["run", *TRAINED, "controls=[]", f"output_dir={tmp_path}"]) == 0
    # After the baseline, the step and the final fine-tuning.
    assert refused == 3


def late_in(steps: int, at: int, turn: int) -> Callable[[events.Event], bool]:
    """Returns what is true once the training of so many updates whose turn it is has done some of them."""
    turns = 0

    def when(event: events.Event) -> bool:
        nonlocal turns
        turns += isinstance(event, events.TrainingLoss) and (event.steps, event.step) == (steps, at)
        return turns == turn

    return when


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("stopped_in", "go_on"),
    # 9 updates an epoch: the baseline of 3 epochs, fine-tuning of 2 and 5, each stopped in its last. In the control the
    # training before it continues as well, from its end.
    [((27, 23, 1), 1), ((18, 12, 1), 1), ((45, 40, 1), 1), ((18, 12, 2), 1), ((45, 40, 2), 2)],
)
def test_a_run_stopped_in_a_training_ends_as_one_that_was_not(
    stopped_in: tuple[int, int, int], go_on: int, *, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stop_run(tmp_path, *TRAINED, when=late_in(*stopped_in), number=signal.SIGTERM) == signal.SIGTERM
    run_dir = RunDir(next((tmp_path / "runs").iterdir()))
    assert list(run_dir.trainings.iterdir())
    capsys.readouterr()
    assert main(["resume", str(run_dir.path)]) == 0
    assert capsys.readouterr().out.count("training continues where it was stopped") == go_on
    assert not run_dir.trainings.exists()
    compare(run_dir, whole)


TRAINED = (
    *QUICK,
    "threads=1",
    "attacks=none",
    "evaluate.energy_window_s=0.05",
    "metrics=[cka]",
    "ratio=0.2",
    "baseline.epochs=3",
    "baseline.batch_size=32",
    "finetune.batch_size=32",
    "finetune.epochs_per_step=2",
    "finetune.final_epochs=5",
    "controls=[more_training]",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["run", *TRAINED, f"output_dir={folder}"]) == 0
    return folder


def compare(run_dir: RunDir, whole: Path) -> None:
    """Checks that a run ended with the rows and the weights of the whole one."""
    folders = (whole, run_dir.path.parents[1])
    # A stop changes their order: the row of the run is there before its control's.
    expected, rows = (read_rows(folder / "results.csv").sort_values("control", ignore_index=True) for folder in folders)
    columns = ["removed_blocks", "accuracy_pruned_pct", "accuracy_base_pct", "control", "status"]
    assert json.loads(rows[columns].to_json()) == json.loads(expected[columns].to_json())
    for folder in rows["run_dir"]:
        found = next(whole.glob(f"runs/*{Path(folder).name.partition('-')[2]}"))
        weights, right = (load_file(RunDir(path).pruned_checkpoint) for path in (Path(folder), found))
        assert all(torch.equal(weights[name], right[name]) for name in right)
