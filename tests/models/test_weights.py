"""Weights come in whole or not at all, and nothing in a file is executed."""

from __future__ import annotations

import os
import pickle
import subprocess
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load, save_file
from torch import nn
from torch.serialization import get_safe_globals

from consensus_cli.errors import UserError
from consensus_cli.models.weights import load_into, read_state_dict, serialize

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2)}


@pytest.fixture
def network() -> nn.Module:
    return nn.Linear(3, 2)


def test_safetensors_round_trip(tmp_path: Path, network: nn.Module) -> None:
    (tmp_path / "weights.safetensors").write_bytes(serialize(network, {"note": "x"}))
    state = read_state_dict(tmp_path / "weights.safetensors")
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def test_tied_weights_can_be_written() -> None:
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    tied[1].weight = tied[0].weight
    assert set(load(serialize(tied, {}))) == {"0.weight", "1.weight"}


def test_batch_counters_may_be_missing() -> None:
    network = nn.BatchNorm2d(3)
    state = {key: value for key, value in network.state_dict().items() if key != "num_batches_tracked"}
    load_into(network, state | {"running_mean": torch.ones(3)}, "weights")
    assert network.running_mean is not None
    assert torch.equal(network.running_mean, torch.ones(3))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_state_dict(tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_file(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    if name.endswith(".pt"):
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError) as caught:
        read_state_dict(path)
    assert "cannot be read" in caught.value.message or "refused" in caught.value.message


class _Malicious:
    """Unpickling it calls a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "was_here"


#: what a pickle calls to make a file
CALLS = {
    "a method": lambda marker: _Malicious(Path.touch, marker),
    "the interpreter": lambda marker: _Malicious(exec, f"open({str(marker)!r}, 'w')"),
    "the system": lambda marker: _Malicious(os.mkdir, str(marker)),
    "another program": lambda marker: _Malicious(subprocess.check_call, ["touch", str(marker)]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_does_not_run(call: str, legacy: bool, tmp_path: Path, marker: Path) -> None:
    path, inside = tmp_path / "weights.pt", CALLS[call](marker)
    path.write_bytes(pickle.dumps(inside))
    with pytest.raises(UserError, match="refused"):
        read_state_dict(path)
    # Good weights beside it change nothing.
    torch.save({"state_dict": STATE, "more": inside}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"may run code when loaded .*, so it is refused"):
        read_state_dict(path)
    assert not marker.exists()


class _Writes:
    """Loading an object of it the usual way writes a file."""

    def __init__(self, marker: str) -> None:
        Path(marker).touch()
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return _Writes, (self.marker,), {"marker": self.marker}

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["marker"]).touch()


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_beside_the_weights_are_left_out_without_their_code(legacy: bool, tmp_path: Path, marker: Path) -> None:
    beside = _Writes(str(marker))
    marker.unlink()
    torch.save({"model": STATE, "b": beside}, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    read = read_state_dict(tmp_path / "x.pt")
    assert list(read) == ["model.weight", "model.bias"]
    assert not marker.exists()
    assert not any("Foreign" in str(allowed) or "_Writes" in str(allowed) for allowed in get_safe_globals())


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(2)], torch.zeros(2), 7])
def test_a_file_without_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        read_state_dict(tmp_path / "weights.pt")


def test_a_mismatch_names_what_does_not_fit(network: nn.Module) -> None:
    state = {"weight": torch.zeros(5, 3), "scale": torch.zeros(1)}
    before = network.weight.clone()  # type: ignore[union-attr, operator]
    with pytest.raises(UserError) as caught:
        load_into(network, state, "checkpoint x")
    message = caught.value.message
    assert "1 missing: bias" in message
    assert "1 unexpected: scale" in message
    assert "weight (5, 3) instead of (2, 3)" in message
    assert torch.equal(network.weight, before)  # type: ignore[arg-type]


def test_a_mismatch_names_at_most_ten() -> None:
    many = {f"layer{i:02}": torch.zeros(1) for i in range(13)}
    with pytest.raises(UserError, match=r"layer09 and 3 more"):
        load_into(nn.Module(), many, "checkpoint x")


def test_a_network_that_asks_for_the_version_of_its_format_takes_its_own_weights() -> None:
    network = torchvision.models.mnasnet0_5(num_classes=3)
    load_into(network, {key: value.clone() for key, value in network.state_dict().items()}, "its own file")
