"""What a run vouches for: that what it saved answers as what it measured, and how fast that is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.quick import QUICK
from safetensors.torch import load, save
from torch import Tensor, nn

from consensus_cli.cli.main import main
from consensus_cli.experiment import certificate, export
from consensus_cli.experiment.certificate import difference, logits
from consensus_cli.models.modes import SAME
from consensus_cli.report import certificates
from consensus_cli.report.certificates import rows, sentence
from consensus_cli.report.page import write_report
from consensus_cli.report.runs import load as load_runs
from consensus_cli.storage import checkpoint
from consensus_cli.storage.certificate import read_certificate
from consensus_cli.storage.rundir import RunDir

WORDS = (*QUICK, "baseline.epochs=1", "metrics=fast", "finetune=none", "attacks=none", "ratio=0.25", "threads=1")


def test_a_run_vouches_for_what_it_saved(finished_run: Path, outputs: Path, tmp_path: Path) -> None:
    files = RunDir(finished_run)
    row, content = files.read_row(), read_certificate(files)
    assert row is not None
    same = {"images": 64, "same_predictions": 64, "max_difference": 0.0, "allowed": 0.0}
    assert content["answers"] == {"saved": same, "loaded": same}
    assert content["run_id"] == finished_run.name
    assert (content["device"], content["runtime"], content["precision"]) == ("cpu", "torch", "fp32")
    assert content["memory_format"] == "channels_last"
    assert content["threads"] == row["threads"]
    assert content["macs_uncounted"] == "nothing"
    assert content["target"] == {
        "quantity": "blocks",
        "asked": 0.5,
        "original": row["blocks_candidates"],
        "pruned": row["blocks_candidates"] - row["blocks_removed"],
        "saved": 0.5,
        "met": True,
    }
    for timed in content["latency"]:
        name = f"latency_b{timed['batch']}"
        assert (timed["original_ms"], timed["pruned_ms"]) == (row[f"{name}_base_ms"], row[f"{name}_pruned_ms"])
        assert timed["speed_up"] == pytest.approx(1 / (1 - row[f"{name}_reduction_pct"] / 100))
        low, high = timed["speed_up_ci95"]
        assert low <= timed["speed_up"] <= high
    told = sentence(content)
    assert "target 50 % of the blocks: met, 50.0 % less; " in told
    assert told.endswith("largest difference of a logit on 64 test images: saved 0, loaded 0")
    assert "times as fast at batch 128; " in told
    assert told in (outputs / "quiet.txt").read_text()
    assert told.replace("[", r"\[").replace("]", r"\]") in files.summary.read_text()
    assert rows(load_runs(outputs), 1)[0][4:] == ["saved 0, loaded 0", "nothing"]
    write_report(outputs, tmp_path / "page.html")
    assert "<td>saved 0, loaded 0</td>" in (tmp_path / "page.html").read_text()


def other_numbers(data: bytes) -> bytes:
    weights = load(data)
    return save({name: 1.01 * value if value.ndim > 1 else value for name, value in weights.items()})


@pytest.mark.parametrize(
    ("fault", "message"),
    [(other_numbers, "(saved: same class on "), (lambda data: data[:200], "the run's own file cannot be read")],
)
def test_a_save_that_went_wrong_fails_the_run(
    fault: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serialize = checkpoint.serialize

    def corrupt(network: nn.Module, metadata: dict[str, str]) -> bytes:
        data = serialize(network, metadata)
        return fault(data) if "removed_blocks" in metadata else data

    monkeypatch.setattr(checkpoint, "serialize", corrupt)
    assert main(["run", "--quiet", *WORDS, f"output_dir={tmp_path}"]) == 1
    error, hint = (text for text in capsys.readouterr().err.splitlines() if text.startswith(("error: ", "hint: ")))
    assert error.startswith("error: the saved network does not answer as the one that was measured (")
    assert message in error
    (folder,) = (tmp_path / "runs").iterdir()
    files = RunDir(folder)
    assert str(files.rejected_checkpoint) in hint
    assert files.rejected_checkpoint.is_file()
    assert not files.pruned_checkpoint.exists()
    row = files.read_row()
    assert row is not None
    # What was measured is not lost.
    assert row["status"] == "failed"
    assert row["accuracy_pruned_pct"] >= 0
    found = read_certificate(files)["answers"]
    assert not found or found["saved"]["max_difference"] > found["saved"]["allowed"]

    monkeypatch.undo()
    assert main(["resume", "--quiet", str(folder)]) == 0
    assert read_certificate(files)["answers"]["loaded"]["max_difference"] == 0
    assert (files.read_row() or {})["accuracy_pruned_pct"] == row["accuracy_pruned_pct"]


STATEFUL = """
import torch
from torch import nn

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.branch(x))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 10)
        self.blocks = nn.Sequential(*(Residual() for _ in range(4)))
        self.seen = 0

    def forward(self, x):
        if self.training:
            self.seen += len(x)
        return self.head(self.blocks(self.stem(x)).mean((2, 3))) * (1 + self.seen / 1000)
"""


def test_a_network_that_keeps_state_outside_its_state_dict_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stateful.py").write_text(STATEFUL)
    words = [*WORDS, "finetune=smoke", "model=custom", f"model.target={tmp_path / 'stateful.py'}:Net"]
    assert main(["run", "--quiet", *words, f"output_dir={tmp_path / 'outputs'}"]) == 1
    error = capsys.readouterr().err
    # The copy that has its weights alone from the file keeps the state; the network that is built anew does not.
    assert "(loaded: same class on " in error
    assert "a network must keep all that its answers depend on in its state dict" in error


def test_an_export_is_added_and_one_that_answers_otherwise_is_a_failure(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files, words = RunDir(finished_run), ["export", str(finished_run), "--out", str(tmp_path / "net.safetensors")]
    assert main(words) == 0
    entry = read_certificate(files)["exports"]["safetensors"]
    assert (entry["path"], entry["images"], entry["max_difference"]) == (words[-1], 64, 0.0)
    assert sentence(read_certificate(files)).endswith("loaded 0, safetensors 0")

    def wrong(network: nn.Module, *_: object) -> Any:
        return lambda images: network(images) + 1

    monkeypatch.setitem(export.FORMATS, "safetensors", export.Format(wrong, "x.safetensors"))
    capsys.readouterr()
    assert main(words) == 1
    assert "does not answer as the pruned network: same class on 64 of 64 test images, larg" in capsys.readouterr().err
    assert read_certificate(files)["exports"]["safetensors"]["max_difference"] == pytest.approx(1)
    monkeypatch.undo()
    assert main(words) == 0


def test_a_difference_is_of_the_numbers_alone() -> None:
    expected = torch.tensor([[1.0, 2.0], [4.0, math.nan]])
    assert difference(expected, expected.clone()).max_difference == 0
    assert difference(expected, expected.clone()).is_same
    other = torch.tensor([[1.0, 2.5], [4.0, math.nan]])
    assert difference(expected, other).max_difference == 0.5
    assert not difference(expected, other, relative=SAME).is_same
    assert difference(expected, other, relative=0.2).is_same
    # A number that only one of them has is no small difference.
    assert not difference(expected, torch.nan_to_num(expected), relative=1.0).is_same
    assert difference(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0]])).same_predictions == 0


def test_what_a_network_draws_is_the_same_each_time() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) + torch.rand(len(x), x[0].numel())

    images = torch.rand(2, 1, 2, 2)
    state = torch.get_rng_state()
    assert torch.equal(logits(Noisy(), images), logits(Noisy(), images))
    assert torch.equal(torch.get_rng_state(), state)


COUNTED = {"macs_base": 400, "macs_pruned": 300, "blocks_removed": 4, "blocks_candidates": 10}
GOAL = {
    "goal_latency_base_ms": 10.0,
    "goal_latency_pruned_ms": 7.0,
    "goal_latency_saved_pct": 30.0,
    "goal_latency_saved_low_pct": 28.0,
    "goal_latency_saved_high_pct": 32.0,
    "goal_batch_size": 1,
    "goal_runtime": "torch",
    "goal_precision": "fp32",
    "goal_confidence": 0.95,
}


@pytest.mark.parametrize(
    ("row", "met", "told"),
    [
        (COUNTED | {"ratio_unit": "macs", "ratio": 0.3}, False, "30 % of the MACs: missed, 25.0 % less"),
        (COUNTED | {"ratio_unit": "macs", "ratio": 0.25}, True, "25 % of the MACs: met, 25.0 % less"),
        (COUNTED | {"target": "0.3 kMACs", "ratio": None}, True, "0.3 kMACs at most: met, 25.0 % less"),
        (COUNTED | {"target": "299 MACs", "ratio": None}, False, "299 MACs at most: missed, 25.0 % less"),
        (COUNTED | {"ratio_unit": "blocks", "ratio": 0.5}, False, "50 % of the blocks: missed, 40.0 % less"),
        (COUNTED | {"ratio_unit": "blocks", "ratio": 0.4}, True, "40 % of the blocks: met, 40.0 % less"),
        # The bad end of the interval counts.
        (GOAL | {"ratio_unit": "latency", "ratio": 0.29}, False, "missed, 30.0 % [28.0, 32.0] less"),
        (GOAL | {"ratio_unit": "latency", "ratio": 0.28}, True, "met, 30.0 % [28.0, 32.0] less"),
        (GOAL | {"target": "7 ms", "ratio": None}, True, "7 ms at most: met, 30.0 % [28.0, 32.0] less"),
    ],
)
def test_the_target(row: dict[str, Any], met: bool, told: str) -> None:
    target = certificate._target(row)
    assert target is not None
    assert target["met"] is met
    assert certificates._target(target).endswith(told)


def test_a_row_that_does_not_say_what_its_goal_cost() -> None:
    assert certificate._target({"ratio_unit": "latency", "ratio": 0.3}) is None
    assert certificates._target(None) == "–"


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"answers": 3}', '{"answers": {"saved": {}}, "latency": []}'])
def test_a_damaged_certificate_is_left_out(content: str, tmp_path: Path) -> None:
    files = RunDir(tmp_path)
    files.certificate.write_text(content)
    assert sentence(read_certificate(files)) == ""
    assert json.dumps(read_certificate(files)) == (content if content.startswith("{") else "{}")
