"""The state of a run: exact, whole or not there, and harmless whoever wrote it."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.results_rows import errno_with_file_limit
from safetensors.torch import save_file
from torch import nn

from consensus_cli.errors import UserError
from consensus_cli.evaluation.cost.energy import Consumption
from consensus_cli.experiment.prepare import Prepared
from consensus_cli.experiment.session import as_saved
from consensus_cli.models import zoo
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.spec import ModelSpec
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.scoring.ranking.consensus import Ranking, RankStability
from consensus_cli.storage.scores import read_all, score_table, write_scores
from consensus_cli.storage.state import RunState, read_state

SPEC = ModelSpec("cifar_resnet", "resnet20", num_classes=10, mean=[0.5], std=[0.5])


@pytest.fixture
def original() -> Classifier:
    torch.manual_seed(0)
    return zoo.build(SPEC, 1).eval()


def some_state() -> RunState:
    return RunState(
        removed=["layer1.1"],
        scorings=2,
        phases={"score": Consumption(1e-9, math.nan, 0.1)},
        batch_sizes={"training": 32},
        threads_lowered=["from 2 after 3 s"],
        tuned={"0.25": {"finetune": Consumption(1.0, 2.0, 3.0)}},
        duration_s=0.1 + 0.2,
    )


def prepared(original: Classifier) -> Prepared:
    return cast(Prepared, SimpleNamespace(original=original))


def test_a_state_reads_back_exactly(tmp_path: Path, original: Classifier) -> None:
    path, state = tmp_path / "state.safetensors", some_state()
    remove_blocks(original.network, ["layer1.1"])
    state.write(path, original)
    again, weights = read_state(path, None)
    assert repr(again) == repr(state)
    expected = original.network.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in weights.items())


def test_scores_read_back_exactly_up_to_the_state(tmp_path: Path, original: Classifier) -> None:
    """Of a run that was killed between its two writes, the scores are one removal ahead."""
    ranking = Ranking(
        blocks=("layer1.1", "layer1.2"),
        distances={"cka": np.array([0.1 + 0.2, math.pi])},
        ranks={"cka": np.array([1.0, 2.0])},
        importance=np.array([1.0, 2.0]),
        order=np.array([0, 1]),
        stability=RankStability(np.array([1.0, 1.0]), np.array([1.0, 2.0]), np.array([1.0, 0.0]), 5),
    )
    tables = [score_table(number, ranking) for number in (1, 2, 3)]
    write_scores(tmp_path / "scores.csv", pd.concat(tables))
    some_state().write(tmp_path / "state.safetensors", original)
    state, _ = read_state(tmp_path / "state.safetensors", read_all(tmp_path / "scores.csv"))
    pd.testing.assert_frame_equal(state.scores.reset_index(drop=True), pd.concat(tables[:2], ignore_index=True))
    write_scores(tmp_path / "again.csv", pd.concat([state.scores, tables[2]]))
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "scores.csv").read_bytes()


def test_a_state_of_the_first_version_is_read(tmp_path: Path) -> None:
    content = {"format": 1, "removed": ["a"], "scores": [{}, {}], "stages": {"score": {"kwh": 1.0}}, "batch_sizes": {}}
    content |= {"tuned": {}, "duration_s": 2.0}
    save_file({"x": torch.zeros(1)}, tmp_path / "state", metadata={"state": json.dumps(content)})
    state, _ = read_state(tmp_path / "state", None)
    assert (state.removed, state.scorings, state.phases) == (["a"], 2, {"score": Consumption(1.0)})


class KeepsWhatItComputed(nn.Module):
    """Computes a value from its weight at the first pass, and keeps it when other weights are loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0]))
        self.kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = 3 * self.scale
        return x * self.kept


def test_weights_go_into_a_network_that_has_never_run() -> None:
    fresh, ran = (Classifier(nn.Identity(), KeepsWhatItComputed()) for _ in range(2))
    one = torch.ones(1, 1)
    with torch.no_grad():
        ran.network(one)
        ran.network.scale.fill_(5.0)  # type: ignore[operator, union-attr]
    assert as_saved(prepared(fresh), ran, RunState(removed=[])).network(one).item() == 15
    assert ran.network(one).item() == 6
    assert fresh.network.kept is None


def test_a_copy_has_the_weights_and_leaves_the_original_as_it_is(original: Classifier) -> None:
    pruned = as_saved(prepared(original), original, RunState(removed=[]))
    remove_blocks(pruned.network, ["layer2.1"])
    with torch.no_grad():
        pruned.network.fc.bias.fill_(7.0)  # type: ignore[operator, union-attr]
    copy = as_saved(prepared(original), pruned, RunState(removed=["layer2.1"]))
    expected = pruned.network.state_dict()
    assert copy.network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in copy.network.state_dict().items())
    assert original.network.fc.bias.abs().max() < 7  # type: ignore[operator, union-attr]


def test_a_full_disk_keeps_the_earlier_state(tmp_path: Path, original: Classifier) -> None:
    path = tmp_path / "state.safetensors"
    RunState(duration_s=1.0).write(path, original)
    before = path.read_bytes()
    assert errno_with_file_limit(10_000, lambda: some_state().write(path, original)) == errno.EFBIG
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


DAMAGE: dict[str, dict[str, Any]] = {
    "no list": {"removed": "layer1.1"},
    "no texts": {"removed": [1]},
    "no mapping": {"phases": [1]},
    "no number": {"duration_s": "long"},
    "another field": {"phases": {"score": {"__class__": 1}}},
    "no count": {"scorings": None},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_told(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    content = {"removed": [], "scorings": 0, "phases": {}, "batch_sizes": {}, "tuned": {}, "duration_s": 0.0}
    save_file({"x": torch.zeros(1)}, path, metadata={"state": json.dumps(content)})
    assert repr(read_state(path, None)[0]) == repr(RunState())
    save_file({"x": torch.zeros(1)}, path, metadata={"state": json.dumps(content | DAMAGE[damage])})
    with pytest.raises(UserError, match="is not the state of a run"):
        read_state(path, None)


@pytest.mark.parametrize("content", [b"", b"\x80\x04cos\nsystem\n(S'true'\ntR.", b"[" * 1000])
def test_what_is_no_state_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not the state of a run"):
        read_state(path, None)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "__class__", "layer1.7"])
def test_a_state_can_only_name_blocks_of_the_network(name: str, original: Classifier) -> None:
    with pytest.raises(UserError, match="unknown block"):
        as_saved(prepared(original), original, RunState(removed=[name]))
