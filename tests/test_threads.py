"""The number of threads: what is decided from what others use, with a clock and a load of the test's own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from helpers.quick import QUICK
from helpers.tiny import CPU, bright_or_dark, small_network
from torch import nn

from consensus_cli import training
from consensus_cli.cli.main import main
from consensus_cli.config.composition import compose_run
from consensus_cli.data.share import Share
from consensus_cli.data.split import Augmentation
from consensus_cli.errors import UserError
from consensus_cli.evaluation.cost.complexity import LATENCY_MIN_BLOCKS, latency_ms
from consensus_cli.evaluation.cost.energy import EnergyMeter, compare_energy
from consensus_cli.experiment.steps import Steps
from consensus_cli.experiment.threads import WINDOW_S, Load, ThreadWatch, restored
from consensus_cli.models.resnet import ResNet
from consensus_cli.models.weights import serialize
from consensus_cli.pruning.blocks import find_blocks
from consensus_cli.scoring.representations import AblationEngine
from consensus_cli.screen import Screen
from consensus_cli.storage.state import RunState, read_state


class Machine:
    """A machine with a clock that the test moves, and others who use a changing number of its cores."""

    def __init__(self, cores: int, others: float = 0.0) -> None:
        self.cores, self.others, self.now_s, self.used_s, self.said = cores, others, 0.0, 0.0, []

    def passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.used_s += seconds * self.others

    def load(self) -> Load:
        return Load(self.now_s, self.used_s, self.cores)

    def watch(self, asked: int | None = None, **options: bool) -> ThreadWatch:
        return ThreadWatch(
            asked, self.said.append, load=self.load, clock=lambda: self.now_s, sleep=self.passes, **options
        )

    def works(self, watch: ThreadWatch, updates_s: Sequence[float]) -> list[int]:
        """Returns the number of threads after each update."""
        counts = []
        for seconds in updates_s:
            self.passes(seconds)
            watch.tick()
            counts.append(torch.get_num_threads())
        return counts


@pytest.fixture(autouse=True)
def sixteen_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch with 16 threads on a machine of 16 cores, whatever this one has."""
    monkeypatch.setattr("joblib.cpu_count", lambda: 16)
    with restored():
        torch.set_num_threads(16)
        yield


def with_threads(count: int) -> None:
    torch.set_num_threads(count)


def test_a_quiet_machine_keeps_the_number_that_pytorch_chose() -> None:
    with_threads(2)
    machine = Machine(cores=2, others=0.3)
    watch = machine.watch()
    watch.look()
    assert machine.now_s == pytest.approx(0.2)
    assert set(machine.works(watch, [0.03] * 1000)) == {2}
    assert (watch.lowered, machine.said) == ([], [])


@pytest.mark.parametrize(
    ("cores", "threads", "others", "left"),
    [(2, 2, 0.9, 1), (2, 2, 1.6, 1), (16, 16, 1.0, 15), (16, 16, 5.8, 10), (16, 8, 6.0, 8), (16, 8, 9.0, 7),
     (16, 16, 16.0, 1)],
)  # fmt: skip
def test_a_run_begins_with_as_many_threads_as_others_leave_cores(
    cores: int, threads: int, others: float, left: int
) -> None:
    with_threads(threads)
    machine = Machine(cores, others)
    watch = machine.watch()
    watch.look()
    assert torch.get_num_threads() == left
    assert watch.lowered == ([f"from {threads} at the start"] if left < threads else [])
    assert len(machine.said) == len(watch.lowered)
    if machine.said:
        assert f"repeats bit for bit with threads={left}" in machine.said[0]


def test_who_only_starts_up_beside_the_run_changes_nothing() -> None:
    with_threads(2)
    machine = Machine(cores=2)
    watch = machine.watch()

    def rests(seconds: float) -> None:
        machine.others = 1.0 if machine.now_s < 0.1 else 0.1
        machine.passes(seconds)

    watch._sleep = rests
    watch.look()
    assert machine.now_s == pytest.approx(1.0)
    assert (torch.get_num_threads(), watch.lowered) == (2, [])


def test_a_stall_in_the_middle_is_noticed_at_the_first_slow_update() -> None:
    with_threads(2)
    machine = Machine(cores=2)
    watch = machine.watch()
    watch.look()
    assert set(machine.works(watch, [0.025] * 400)) == {2}
    machine.others = 1.3
    assert machine.works(watch, [5.0, 0.036, 0.036]) == [1, 1, 1]
    assert watch.lowered == ["from 2 after 15 s"]
    assert len(machine.said) == 1
    assert "other programs use 0.9 of 2 cores" in machine.said[0]
    assert "does not repeat bit for bit" in machine.said[0]


def test_slower_updates_without_a_stall_are_noticed_within_two_windows() -> None:
    with_threads(2)
    machine = Machine(cores=2)
    watch = machine.watch()
    machine.works(watch, [0.025] * 400)
    machine.others, begun_s = 0.8, machine.now_s
    while torch.get_num_threads() == 2:
        machine.works(watch, [0.115])
    assert machine.now_s - begun_s < 2 * WINDOW_S


def test_noise_of_others_changes_nothing() -> None:
    with_threads(2)
    machine = Machine(cores=2)
    watch = machine.watch()
    for others in (0.0, 0.4, 1.0, 0.0, 0.2) * 20:
        machine.others = others
        machine.works(watch, [0.05] * 8)
    assert (torch.get_num_threads(), watch.lowered) == (2, [])


def test_it_falls_again_where_more_cores_are_taken_and_never_rises() -> None:
    machine = Machine(cores=16)
    watch, counts = machine.watch(), []
    for others in (4.0, 4.0, 9.0, 0.0, 20.0, 0.0):
        machine.others = others
        counts += machine.works(watch, [3.0])
    assert counts == [12, 12, 7, 7, 1, 1]
    assert watch.lowered == ["from 16 after 3 s", "from 12 after 9 s", "from 7 after 15 s"]


@pytest.mark.parametrize("asked", [2, 3, 16])
def test_the_users_number_stays_and_a_stall_is_reported_once(asked: int) -> None:
    machine = Machine(cores=2)
    watch = machine.watch(asked)
    watch.look()
    assert (machine.now_s, set(machine.works(watch, [0.03] * 400))) == (0.0, {asked})
    assert machine.said == []
    machine.others = 1.2
    assert set(machine.works(watch, [5.0] * 4)) == {asked}
    assert watch.lowered == []
    assert len(machine.said) == 1
    assert f"threads={asked}" in machine.said[0]
    assert "threads=1" in machine.said[0]


def test_one_thread_waits_for_nobody_and_a_gpu_for_no_thread() -> None:
    for threads, options in ((1, {}), (8, {"watched": False})):
        with_threads(threads)
        machine = Machine(cores=16, others=16.0)
        watch = machine.watch(**options)
        watch.look()
        assert machine.works(watch, [5.0] * 3) == [threads] * 3
        assert (machine.now_s, watch.lowered, machine.said) == (15.0, [], [])


def test_a_quota_of_the_container_counts_and_a_system_that_shows_nothing_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    watch = ThreadWatch(None, pytest.fail, load=lambda: Load(0.0, None, 1), sleep=lambda _: None)
    watch.look()
    watch.tick()
    assert torch.get_num_threads() == 3
    assert Load(2.0, None, 1).used_since_pct(Load(1.0, None, 1)) is None


def test_load_is_between_nothing_and_all_cores() -> None:
    before = Load(10.0, 100.0, 4)
    assert Load(12.0, 103.0, 4).used_since(before) == pytest.approx(1.5)
    assert Load(12.0, 103.0, 4).used_since_pct(before) == pytest.approx(37.5)
    assert Load(12.0, 99.9, 4).used_since(before) == 0.0
    assert Load(12.0, 999.0, 4).used_since(before) == 4.0
    assert before.used_since(before) is None


def test_what_others_use_leaves_this_process_its_children_and_foreign_cores_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def core(user: float, **more: float) -> SimpleNamespace:
        return SimpleNamespace(**({"user": user, "system": 1.0, "idle": 500.0, "iowait": 9.0, "guest": user} | more))

    child = SimpleNamespace(pid=7)
    monkeypatch.setattr("psutil.cpu_times", lambda percpu: [core(100.0), core(900.0), core(20.0, steal=4.0, nice=3.0)])
    monkeypatch.setattr("psutil.Process", lambda pid: SimpleNamespace(cpu_times=lambda: (5.0, 0.5, 0.25, 0.25, 77.0)))
    monkeypatch.setattr("multiprocessing.active_children", lambda: [child])
    monkeypatch.setattr("os.times", lambda: os.times_result((30.0, 2.0, 8.0, 1.0, 12345.0)))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 2}, raising=False)
    load = Load.now()
    assert (load.cores, load.others_s) == (2, pytest.approx(101 + 28 - 41 - 6))


def test_counters_that_may_not_be_read_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(percpu: bool) -> None:
        raise PermissionError("/proc/stat")

    monkeypatch.setattr("psutil.cpu_times", refused)
    assert Load.now().others_s is None


def test_every_update_batch_and_pass_ticks() -> None:
    ticks: list[int] = []
    split, still = bright_or_dark(64), Augmentation()
    recipe = training.Recipe(
        epochs=2, batch_size=16, learning_rate=0.1, schedule="cosine", milestones=(), momentum=0.9, weight_decay=0.0,
        label_smoothing=0.0,
    )  # fmt: skip
    training.train(
        small_network(), split, recipe,
        device=CPU, augmentation=still, seed=0, precision="fp32", tick=lambda: ticks.append(0),
    )  # fmt: skip
    assert ticks == [0] * 8
    training.recalibrate_batch_norm(
        small_network(), split,
        images=48, batch_size=16, device=CPU, augmentation=still, seed=0, tick=lambda: ticks.append(1),
    )  # fmt: skip
    assert ticks == [0] * 8 + [1] * 3


def test_every_forward_pass_of_scoring_ticks() -> None:
    network, images = ResNet(2).eval(), torch.rand(8, 3, 8, 8)
    blocks, ticks = [b for b in find_blocks(network, images) if b.removable], []
    engine = AblationEngine(network, blocks, images, tick=lambda: ticks.append(0))
    built = len(ticks)
    assert built >= 1 + len(blocks)
    engine.representations(images)
    assert len(ticks) > built


def test_latency_begins_anew_where_the_number_of_threads_changes() -> None:
    with_threads(2)
    blocks: list[int] = []

    def lowered_once() -> None:
        blocks.append(torch.get_num_threads())
        if len(blocks) == 3:
            with_threads(1)

    found = latency_ms({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}, (1, 4, 4), 1, "cpu", 0.0, tick=lowered_once)
    assert blocks == [2, 2, 2] + [1] * 2 * LATENCY_MIN_BLOCKS
    assert [len(one.blocks_ms) for one in found.values()] == [LATENCY_MIN_BLOCKS] * 2


def test_energy_begins_anew_where_the_number_of_threads_changes() -> None:
    with_threads(2)
    windows: list[tuple[int, int]] = []

    def told(doing: str, done: int, total: int) -> None:
        windows.append((done, torch.get_num_threads()))
        if len(windows) == 3:
            with_threads(1)

    work = {"a": lambda: None, "b": lambda: None}
    found = compare_energy(work, meter=EnergyMeter("BRA"), window_s=0, repeats=1, progress=told)
    assert windows == [(1, 2), (2, 2), (3, 2), (1, 1), (2, 1), (3, 1), (4, 1)]
    assert len(found["a"].windows_kwh) == 1


def test_a_run_keeps_the_threads_the_fall_and_the_load_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_threads(2)
    wall_s = iter(range(10**6))
    # Every reading is a second after the last, and others have used one and a half of four cores meanwhile, then three.
    monkeypatch.setattr(Load, "now", classmethod(lambda cls: cls(s := next(wall_s), 3.0 * s, 4)))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    small = ("baseline.epochs=1", "criterion=first", "finetune=none", "attacks=none", "evaluate.energy_window_s=0.01")
    words = ["run", "--json", *QUICK, *small, "ratio=0.5", f"output_dir={tmp_path}"]
    assert main(words) == 0
    assert torch.get_num_threads() == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (row,) = (line["row"] for line in lines if line["event"] == "row")
    (started,) = (line for line in lines if line["event"] == "started")
    said = [line["text"] for line in lines if line["event"] == "warning"]
    assert (row["threads"], row["threads_lowered"], started["threads"]) == (1, "from 2 at the start", 1)
    assert row["other_load_pct"] == pytest.approx(75.0)
    assert any("threads=1 instead of 2" in text for text in said)
    assert any("75 % of the processor" in text for text in said)
    assert pd.read_csv(tmp_path / "results.csv")["other_load_pct"].tolist() == [75.0]


def test_a_fall_is_kept_over_a_stop_and_states_of_before_have_none(tmp_path: Path) -> None:
    path, network = tmp_path / "state.safetensors", SimpleNamespace(network=nn.Linear(1, 1))
    RunState(threads_lowered=["from 2 after 3 s"]).write(path, network)
    resumed, _ = read_state(path, None)
    prepared = SimpleNamespace(
        threads=SimpleNamespace(lowered=["from 2 at the start"]), config=compose_run([]), device="cpu"
    )
    Steps(prepared, resumed, Share(1, 2), Screen())
    assert prepared.threads.lowered == ["from 2 after 3 s", "from 2 at the start"]
    assert prepared.threads.lowered is resumed.threads_lowered
    earlier = {"removed": [], "scores": [], "stages": {}, "batch_sizes": {}, "tuned": {}, "duration_s": 0.0}
    path.write_bytes(serialize(network.network, {"state": json.dumps(earlier)}))
    assert read_state(path, None)[0].threads_lowered == []


@pytest.mark.parametrize("command", ["run", "score"])
def test_a_number_given_is_used_for_its_run_alone(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []

    def stop(*_: object) -> None:
        used.append(torch.get_num_threads())
        raise UserError("far enough", "for this test")

    monkeypatch.setattr(Steps, "__init__", stop)
    assert main([command, *QUICK, "threads=3", f"output_dir={tmp_path}"]) == 2
    assert (used, torch.get_num_threads()) == ([3], 16)
