"""The state of a run: exact, whole or not there, and harmless whoever wrote it."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.results_rows import errno_with_file_limit
from safetensors.torch import save_file
from torch import nn

from consensus_cli.errors import UserError
from consensus_cli.evaluation.cost.energy import Consumption
from consensus_cli.models import zoo
from consensus_cli.models.classifier import Classifier
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.scoring.ranking.bootstrap import RankStability, Scores
from consensus_cli.scoring.ranking.consensus import Ranking
from consensus_cli.storage.state import State, copied, read, read_network

SPEC = zoo.ModelSpec("cifar_resnet", "resnet20", 10, 1, (0.5,), (0.5,), None, {})


@pytest.fixture
def original() -> Classifier:
    torch.manual_seed(0)
    return zoo.build(SPEC).eval()


def some_state() -> State:
    ranking = Ranking(
        blocks=("layer1.1", "layer1.2"),
        distances={"cka": np.array([0.1 + 0.2, math.pi])},
        ranks={"cka": np.array([1.0, 2.0])},
        importance=np.array([1.0, 2.0]),
        order=np.array([0, 1]),
    )
    stability = RankStability(np.array([1.0, 1.0]), np.array([1.0, 2.0]), np.array([1.0, 0.0]), 5)
    return State(
        removed=["layer1.1"],
        scores=[Scores(ranking, stability), Scores(ranking, None)],
        stages={"score": Consumption(1e-9, math.nan, 0.1)},
        batch_sizes={"training": 32},
        tuned={"0.25": {"finetune": Consumption(1.0, 2.0, 3.0)}},
        duration_s=0.1 + 0.2,
    )


def test_a_state_reads_back_exactly(tmp_path: Path, original: Classifier) -> None:
    path, state = tmp_path / "state.safetensors", some_state()
    remove_blocks(original.network, ["layer1.1"])
    state.write(path, original)
    again = read(path)
    assert repr(again) == repr(state)
    assert again.scores[0].ranking.distances["cka"].tobytes() == state.scores[0].ranking.distances["cka"].tobytes()
    assert again.scores[0].ranking.order.dtype == state.scores[0].ranking.order.dtype
    fresh = zoo.build(SPEC).eval()
    network = read_network(path, fresh, again.removed)
    expected = original.network.state_dict()
    assert network.network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in network.network.state_dict().items())
    assert "layer1.1.conv1.weight" in fresh.network.state_dict()


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


def test_weights_go_into_a_network_that_has_never_run(tmp_path: Path) -> None:
    fresh, ran = (Classifier(nn.Identity(), KeepsWhatItComputed()) for _ in range(2))
    one = torch.ones(1, 1)
    with torch.no_grad():
        ran.network(one)
        ran.network.scale.fill_(5.0)  # type: ignore[operator, union-attr]
    State().write(tmp_path / "state.safetensors", ran)
    for network in (copied(ran, fresh, []), read_network(tmp_path / "state.safetensors", fresh, [])):
        assert network.network(one).item() == 15
    assert ran.network(one).item() == 6
    assert fresh.network.kept is None


def test_a_copy_is_what_a_state_reads_back(tmp_path: Path, original: Classifier) -> None:
    pruned = copied(original, original, [])
    remove_blocks(pruned.network, ["layer2.1"])
    with torch.no_grad():
        pruned.network.fc.bias.fill_(7.0)  # type: ignore[operator, union-attr]
    State().write(tmp_path / "state.safetensors", pruned)
    copy, again = (
        copied(pruned, original, ["layer2.1"]),
        read_network(tmp_path / "state.safetensors", original, ["layer2.1"]),
    )
    expected = pruned.network.state_dict()
    for network in (copy, again):
        assert network.network.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in network.network.state_dict().items())
    assert original.network.fc.bias.abs().max() < 7  # type: ignore[operator, union-attr]


def test_a_full_disk_keeps_the_earlier_state(tmp_path: Path, original: Classifier) -> None:
    path = tmp_path / "state.safetensors"
    State(duration_s=1.0).write(path, original)
    before = path.read_bytes()
    assert errno_with_file_limit(10_000, lambda: some_state().write(path, original)) == errno.EFBIG
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


DAMAGE: dict[str, dict[str, Any]] = {
    "no list": {"removed": "layer1.1"},
    "no texts": {"removed": [1]},
    "no mapping": {"stages": [1]},
    "no number": {"duration_s": "long"},
    "another field": {"stages": {"score": {"__class__": 1}}},
    "no ranking": {"scores": [{"ranking": None, "stability": None}]},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_told(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    content = {"removed": [], "scores": [], "stages": {}, "batch_sizes": {}, "tuned": {}, "duration_s": 0.0}
    save_file({"x": torch.zeros(1)}, path, metadata={"state": json.dumps(content)})
    assert read(path) == State()
    save_file({"x": torch.zeros(1)}, path, metadata={"state": json.dumps(content | DAMAGE[damage])})
    with pytest.raises(UserError, match="is no state of a run"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04cos\nsystem\n(S'true'\ntR.", b"[" * 1000])
def test_what_is_no_state_is_told(content: bytes, tmp_path: Path, original: Classifier) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    for attempt in (lambda: read(path), lambda: read_network(path, original, [])):
        with pytest.raises(UserError, match="is no state of a run"):
            attempt()


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "__class__", "layer1.7"])
def test_a_state_can_only_name_blocks_of_the_network(name: str, tmp_path: Path, original: Classifier) -> None:
    path = tmp_path / "state.safetensors"
    State().write(path, original)
    with pytest.raises(UserError, match="unknown block"):
        read_network(path, original, [name])
