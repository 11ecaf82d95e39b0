"""A run stops at the first network that reaches what was asked for; what nothing reaches is one line at the start."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from helpers.quick import QUICK
from helpers.stopping import in_phase, stop_run

from consensus_cli.cli.main import main
from consensus_cli.config.composition import compose_run, read_config
from consensus_cli.errors import UserError
from consensus_cli.evaluation.cost.block_costs import Costs
from consensus_cli.evaluation.cost.savings import Conditions, Measured
from consensus_cli.evaluation.statistics import Saving
from consensus_cli.experiment import checks, goals, kept_costs, pipeline
from consensus_cli.experiment.run_hash import run_hash
from consensus_cli.models.classifier import network_of
from consensus_cli.models.macs import count_macs
from consensus_cli.screen import open_screen
from consensus_cli.storage.state import RunState, read_state

import torch  # isort: skip

WORDS = (
    *QUICK,
    "model=resnet20",
    "criterion=last",
    "prune.step=1",
    "finetune=none",
    "attacks=none",
    "evaluate.energy_window_s=0.02",
    "threads=1",
)


def by_macs(original: torch.nn.Module, others, quantity: str, under: Conditions) -> dict[str, Measured]:
    """What would be measured if a MAC took a nanosecond, with an interval of ± 1 %."""

    def cost(model: torch.nn.Module) -> float:
        return count_macs(network_of(model), torch.zeros(1, *under.image_shape)).total / 1e6

    base = cost(original)
    found = {}
    for name, other in others.items():
        share = 1 - cost(other) / base
        ends = share - 0.01, share + 0.01
        found[name] = Measured(base, cost(other), *(base * (1 - end) for end in ends[::-1]), Saving(share, *ends))
    return found


@pytest.fixture
def measured_by_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goals, "measure", by_macs)


def run(words: tuple[str, ...], output_dir: Path):
    with open_screen("none") as screen:
        return pipeline.run(compose_run([*WORDS, *words, f"output_dir={output_dir}"]), words, screen)


@pytest.mark.usefixtures("measured_by_macs")
def test_it_stops_at_the_first_network_that_reaches_the_goal(tmp_path: Path) -> None:
    # Each of six blocks holds 11.65 % of the MACs: of 34.9 % the lower end is 33.9 %.
    row = run(("prune=latency", "ratio=0.335"), tmp_path)
    assert row["removed_blocks"] == "layer3.2;layer3.1;layer2.2"
    assert (row["ratio"], row["ratio_unit"]) == (0.335, "latency")
    assert row["goal_latency_saved_pct"] == pytest.approx(34.94, abs=0.01)
    assert row["goal_latency_saved_low_pct"] == pytest.approx(33.94, abs=0.01)
    assert row["goal_latency_base_ms"] == pytest.approx(10.13, abs=0.01)
    settings = {"confidence": 0.95, "batch_size": 1, "runtime": "torch", "precision": "fp32"}
    assert {name: row[f"goal_{name}"] for name in settings} == settings
    assert row["measure_s"] > 0
    # With 34.5 % asked for, the lower end of three blocks does not reach it.
    assert run(("prune=latency", "ratio=0.345"), tmp_path)["blocks_removed"] == 4


def test_where_an_interval_leaves_the_goal_open_it_is_measured_for_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = []

    def wide_first(original, others, quantity: str, under: Conditions) -> dict[str, Measured]:
        times.append(under.latency_s)
        (found,) = by_macs(original, others, quantity, under).values()
        if under.latency_s > 1:
            # Sixteen times the seconds, a quarter of the width.
            share = found.saving.share
            found = found._replace(saving=Saving(share, share - 0.0025, share + 0.0025))
        return {"pruned": found}

    monkeypatch.setattr(goals, "measure", wide_first)
    row = run(("prune=latency", "ratio=0.345", "evaluate.latency_min_run_s=0.1"), tmp_path)
    # Three blocks save 34.94 % ± 1, then ± 0.25: enough; without the second look a fourth would go.
    assert row["blocks_removed"] == 3
    assert row["goal_latency_saved_low_pct"] == pytest.approx(34.69, abs=0.01)
    # All that can go, then 1, 2, 3 and 3 again.
    assert times == pytest.approx([0.4, 0.4, 0.4, 0.4, 1.6])


@pytest.mark.usefixtures("measured_by_macs")
def test_several_blocks_a_round_and_several_ratios(tmp_path: Path) -> None:
    run(("prune=latency", "ratio=[0.1,0.5]", "prune.step=4"), tmp_path)
    rows = pd.read_csv(tmp_path / "results.csv")
    assert list(rows["blocks_removed"]) == [1, 5]
    assert list(rows["goal_latency_saved_pct"].round(1)) == [11.6, 58.2]


@pytest.mark.usefixtures("measured_by_macs")
def test_a_target_in_milliseconds_and_its_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("run", *WORDS, "prune.target=8 ms", f"output_dir={tmp_path}")
    assert main(list(words)) == 0
    shown = capsys.readouterr().out
    assert "removes    blocks until it needs 8 ms at most (batch 1, torch, 6 candidate blocks)" in shown
    assert "without 2 blocks: latency 10.1 ms → 7.77 ms, 23.3 % less [22.3, 24.3]" in shown
    assert "without 0" not in shown
    (run_dir,) = (tmp_path / "runs").iterdir()
    row = json.loads((run_dir / "row.json").read_text())
    assert (row["ratio"], row["ratio_unit"], row["target"], row["blocks_removed"]) == (None, "8 ms", "8 ms", 2)
    assert "to 8 ms to remove" in (run_dir / "summary.md").read_text()
    assert main(["report", str(tmp_path), "--markdown"]) == 0
    assert "to 8 ms" in capsys.readouterr().out
    assert read_config(run_dir / "config.yaml").prune.target == "8 ms"


def test_memory_is_really_measured(tmp_path: Path) -> None:
    row = run(("prune.target=0.6 MiB",), tmp_path)
    assert row["goal_memory_pruned_mib"] <= 0.6 < row["goal_memory_base_mib"]
    assert row["goal_memory_pruned_mib"] == row["peak_memory_b1_pruned_mib"]
    assert row["goal_memory_saved_low_pct"] == row["goal_memory_saved_pct"]


@pytest.mark.parametrize(
    ("words", "removed"),
    [
        (("prune=params", "ratio=0.3"), ["layer3.2", "layer3.1"]),
        (("prune.target=0.2 M params",), ["layer3.2"]),
        (("prune.target=9 MMACs",), ["layer3.2"]),
        # The first blocks are the least important, and hold 1.7 % of the parameters each; one of the last stage 27 %.
        (
            ("prune=params", "ratio=0.3", "criterion=first", "criterion.per=params"),
            ["layer3.1", "layer1.1", "layer1.2"],
        ),
        (("prune=params", "ratio=0.2", "criterion=first", "criterion.per=params"), ["layer3.1"]),
        (("prune=params", "ratio=0.2", "criterion=first"), [f"layer{i}.{j}" for i in (1, 2, 3) for j in (1, 2)][:5]),
        (("prune=macs", "ratio=0.3", "criterion=first", "criterion.per=macs"), ["layer1.1", "layer1.2", "layer2.1"]),
    ],
)
def test_what_is_counted(words: tuple[str, ...], removed: list[str], tmp_path: Path) -> None:
    row = run(words, tmp_path)
    assert row["removed_blocks"].split(";") == removed
    assert row.get("target") == next((w.partition("=")[2] for w in words if "target" in w), None)


def test_what_blocks_save_is_measured_once_and_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goals, "measure", by_macs)
    asked = []

    def table(model, blocks, under, quantities, screen) -> Costs:
        asked.append(list(quantities))
        names = [block.name for block in blocks if block.removable]
        saved = [9.0 if name == "layer1.1" else 1.0 for name in names]
        columns = {"block": names, "stage": 0, "shape": "8", "macs": 1, "params": [*range(len(names))]}
        ends = {f"latency_saved{end}_pct": saved for end in ("", "_low", "_high")}
        return Costs(pd.DataFrame(columns | ends))

    monkeypatch.setattr(kept_costs, "measured", table)
    words = ("prune=latency", "ratio=0.1", "criterion.per=latency")
    row = run(words, tmp_path)
    # The last block is the least important; but all the others together do not save enough. What is really saved is
    # measured once the goal is a block away, here not before it is reached.
    assert row["removed_blocks"] == "layer1.1"
    assert row["per"] == "latency"
    assert run((*words, "seed=1"), tmp_path)["removed_blocks"] == "layer1.1"
    assert asked == [["latency"]]
    assert len(list(tmp_path.glob("runs/*/costs.csv"))) == 2


@pytest.mark.parametrize(("per", "removed"), [("latency", "layer2.2"), ("macs", "layer2.2"), ("nothing", "layer3.2")])
def test_what_the_last_block_saves_is_measured_from_the_network_as_it_is(
    per: str, removed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_parameters(original, others, quantity: str, under: Conditions) -> dict[str, Measured]:
        sizes = [sum(p.numel() for p in model.parameters()) for model in (original, *others.values())]
        shares = [1 - size / sizes[0] for size in sizes[1:]]
        return {
            name: Measured(1.0, 1 - share, 1 - share, 1 - share, Saving(share, share, share))
            for name, share in zip(others, shares, strict=True)
        }

    def table(model, blocks, under, quantities, screen) -> Costs:
        names = [block.name for block in blocks if block.removable]
        columns = {"block": names, "stage": 0, "shape": "8", "macs": 1, "params": 1}
        return Costs(pd.DataFrame(columns | {f"latency_saved{end}_pct": 11.0 for end in ("", "_low", "_high")}))

    monkeypatch.setattr(goals, "measure", by_parameters)
    monkeypatch.setattr(kept_costs, "measured", table)
    # Blocks of the last stage have 27 % of the parameters each, those of the second 7 %.
    words = ("prune=latency", "ratio=0.06", f"criterion.per={per}", "prune.overshoot=0.03")
    row = run(words[: 4 if per != "nothing" else 2], tmp_path)
    assert row["removed_blocks"] == removed


def test_noise_does_not_decide_between_blocks_that_are_the_same_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(original, others, quantity: str, under: Conditions) -> dict[str, Measured]:
        found = by_macs(original, others, quantity, under)
        if len(others) == 1:
            return found
        shares = {name: each.saving.share - 0.04 * (not name.startswith("layer3.1")) for name, each in found.items()}
        return {name: found[name]._replace(saving=Saving(share, share, share)) for name, share in shares.items()}

    monkeypatch.setattr(goals, "measure", noisy)
    # layer3.1 alone seems to save enough; its neighbour is the same work, and less important.
    row = run(("prune=latency", "ratio=0.1", "criterion.per=macs"), tmp_path)
    assert row["removed_blocks"] == "layer3.2"


def test_a_goal_that_was_reached_is_not_measured_again_by_a_later_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goals, "measure", by_macs)
    words = [*WORDS, "finetune.final_epochs=1", "prune=latency", "ratio=0.1", "criterion.per=macs"]
    assert stop_run(tmp_path, *words, when=in_phase("finetune"), number=signal.SIGTERM) == signal.SIGTERM
    monkeypatch.setattr(goals, "measure", None)
    assert main(["resume", str(next((tmp_path / "runs").iterdir()))]) == 0
    assert pd.read_csv(tmp_path / "results.csv")["removed_blocks"].tolist() == ["layer3.2"]


def test_what_the_last_block_saves_is_really_measured(tmp_path: Path) -> None:
    # By MACs all are alike; but a block of the last stage holds 27 % of the parameters, and one of the first 2 %.
    row = run(("prune=memory", "ratio=0.1", "criterion=first", "criterion.per=macs"), tmp_path)
    assert row["removed_blocks"] == "layer3.1"
    assert row["goal_memory_saved_pct"] >= 10


@pytest.mark.usefixtures("measured_by_macs")
def test_a_run_that_was_stopped_measures_nothing_twice(tmp_path: Path) -> None:
    measured = {"layer3.2": Measured(2.0, 1.5, 1.4, 1.6, Saving(0.25, 0.2, 0.3))}
    state = RunState(measured=measured)
    config = compose_run([*WORDS, "prune=latency", "ratio=0.22", f"output_dir={tmp_path}"])
    from consensus_cli.experiment.prepare import prepare

    with open_screen("none") as screen:
        prepared = prepare(config, screen)
    state.write(tmp_path / "state", prepared.original)
    assert read_state(tmp_path / "state", None)[0].measured == measured


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("prune.target=8",), "prune.target=8 has no unit", "'8 ms'"),
        (("prune.target=8 msec",), "unknown unit of prune.target 'msec'", "did you mean 'ms'"),
        (("prune.target=-8 ms",), "prune.target=-8 ms is not above 0", "at most"),
        (("prune.target=8 ms", "ratio=0.4"), "ratio=0.4 and prune.target=8 ms are both given", "leave one"),
        (("prune.target=8 ms", "prune=macs"), "prune.target=8 ms is latency, and prune.unit=macs", "leave one"),
        (("prune=latncy",), "unknown prune 'latncy'", "did you mean 'latency'"),
        (("prune=latency", "criterion.per=latence"), "unknown criterion.per 'latence'", "did you mean 'latency'"),
        (("criterion.per=latence",), "unknown criterion.per 'latence'", "did you mean 'latency'"),
        (("criterion.per=macs",), "criterion.per=macs weighs blocks by what they save", "prune=macs"),
        (("prune=memory", "prune.runtime=onnxruntime"), "peak memory is measured in PyTorch", "as they are"),
        (("prune=latency", "finetune.span=run"), "finetune.span=run needs prune.unit=blocks", "span=step"),
        (("prune.target=50 MMACs",), "prune.target=50 MMACs: the network has 10.1 MMACs in all", "ask for less"),
        (("prune.target=1 MMACs",), "without all 6 blocks that can go, 3.05 MMACs are left", "min_blocks_per_stage"),
        (("prune=params", "ratio=0.95"), "asks for 95.0% fewer parameters; at most 71.4% can go", "0.714"),
        (("prune=memory", "ratio=0.9"), "ratio=0.9 of the memory is out of reach: without all 6", "ratio to 0.67"),
        (("prune.target=0.1 MiB",), "prune.target=0.1 MiB is out of reach", "ask for 0.36"),
        (("prune.target=1 GB",), "the original needs 1.12 MiB already", "ask for less"),
    ],
)
def test_mistakes(
    words: tuple[str, ...], message: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *WORDS, *words, f"output_dir={tmp_path / 'out'}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    error, said = lines[-2:]
    assert sum(line.startswith("error:") for line in lines) == 1
    assert message in error
    assert hint in said
    assert not list((tmp_path / "out").glob("runs/*"))
    assert not list((tmp_path / "out").glob("baselines/*"))


def test_a_latency_that_no_network_reaches_is_known_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goals, "measure", by_macs)
    assert main(["run", *WORDS, "prune=latency", "ratio=0.9", f"output_dir={tmp_path / 'out'}"]) == 2
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert "latency 10.1 ms → 3.05 ms, 69.9 % less [68.9, 70.9] (cpu, batch 1, torch, fp32, 1 thread)" in error
    assert "lower the ratio to 0.688" in hint
    assert not (tmp_path / "out" / "baselines").exists()


def test_a_goal_that_is_missed_after_all_ends_the_run_with_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goals, "measure", by_macs)
    monkeypatch.setattr(pipeline, "check_attainable", lambda prepared: None)
    with pytest.raises(UserError, match=r"out of reach: without all 6 blocks that can go, latency .* 69\.9 % less"):
        run(("prune=latency", "ratio=0.9"), tmp_path)
    assert pd.read_csv(tmp_path / "results.csv")["status"].tolist() == ["failed"]


def test_what_measures_is_another_run_on_another_device_and_with_other_threads() -> None:
    def hashes(*words: str) -> set[str]:
        return {run_hash(replace(compose_run(words), threads=threads)) for threads in (1, 2)}

    assert len(hashes()) == len(hashes("prune=macs")) == 1
    assert len(hashes("prune=latency")) == len(hashes("prune.target=8 ms")) == 2
    assert hashes("prune.target=8 ms").isdisjoint(hashes("prune.target=9 ms"))
    assert not checks.value_problems(compose_run(["prune.target=8 ms"]))
