"""Checkpoints as they are found load with every tensor they hold, or are refused in words that say what they are."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import REFUSED, ROUNDED, WHOLE, Network, averaged, network_and_state, prefixed
from torch import Tensor, nn

from consensus_cli.errors import UserError
from consensus_cli.models.weights import load_given, read_state_dict

State = dict[str, Tensor]


def _load(network: nn.Module, path: Path, *, reset_head: bool = False) -> list[str]:
    given = load_given(network, read_state_dict(path), "checkpoint x", num_classes=10, reset_head=reset_head)
    assert given.fresh_head == any("the head starts fresh" in note for note in given.notes)
    return given.notes


def _saved(content: object, folder: Path) -> Path:
    torch.save(content, folder / "x.pt")
    return folder / "x.pt"


@pytest.fixture
def state() -> State:
    return network_and_state()[1]


@pytest.mark.parametrize("name", WHOLE)
def test_it_loads_with_every_tensor_as_it_was(name: str, tmp_path: Path) -> None:
    network, state = network_and_state()
    expected = {key: value.clone() for key, value in state.items()}
    WHOLE[name](tmp_path / name, network, state)
    fresh = Network()
    _load(fresh, tmp_path / name)
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("name", ROUNDED)
def test_weights_of_lower_precision_load_as_float32(name: str, tmp_path: Path) -> None:
    network, state = network_and_state()
    ROUNDED[name](tmp_path / name, network, state)
    fresh = Network()
    _load(fresh, tmp_path / name)
    for key, value in fresh.state_dict().items():
        assert value.dtype == state[key].dtype
        torch.testing.assert_close(value, state[key], atol=0.01, rtol=0.01)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TorchScript is on its way out
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(name: str, tmp_path: Path) -> None:
    write, expected = REFUSED[name]
    write(tmp_path / name, *network_and_state())
    with pytest.raises(UserError) as caught:
        read_state_dict(tmp_path / name)
    assert expected in caught.value.message
    assert str(tmp_path / name) in caught.value.message


@pytest.mark.parametrize("form", ["plain.pt", "legacy_with_arguments.pt", "plain.safetensors", "objects.pth"])
def test_whatever_bytes_are_damaged_one_line_says_so(form: str, tmp_path: Path) -> None:
    path = tmp_path / form
    WHOLE[form](path, *network_and_state())
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[draw.randrange(min(1500, len(damaged)))] = draw.randrange(256)
        damaged[-draw.randrange(1, 600)] = draw.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            read_state_dict(path)


def test_what_the_tables_hold() -> None:
    assert (len(WHOLE), len(ROUNDED), len(REFUSED)) == (46, 2, 29)


def test_the_index_of_shards_may_be_given_itself(tmp_path: Path, state: State) -> None:
    WHOLE["folder_of_shards"](tmp_path / "folder", Network(), state)
    read = read_state_dict(tmp_path / "folder" / "model.safetensors.index.json")
    assert all(torch.equal(read[key], value) for key, value in state.items())
    assert read.keys() == state.keys()


@pytest.mark.parametrize("owner", ["model", "module", "_orig_mod"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod."])
def test_a_prefix_that_the_network_has_itself_stays(owner: str, prefix: str, tmp_path: Path) -> None:
    network, fresh = nn.Module(), nn.Module()
    network.add_module(owner, network_and_state()[0])
    fresh.add_module(owner, Network())
    _load(fresh, _saved(prefixed(network.state_dict(), prefix), tmp_path))
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in fresh.state_dict().items())


def test_of_weights_and_their_average_the_weights_are_taken_and_both_are_named(tmp_path: Path, state: State) -> None:
    beside = _saved({"ema": averaged(state), "model": state}, tmp_path)
    assert _load(Network(), beside) == ["checkpoint x: its plain weights; the averaged ones ('ema.*') are left out"]
    assert _load(Network(), _saved({"ema": state}, tmp_path)) == ["checkpoint x: its averaged weights ('ema.*')"]
    assert _load(Network(), _saved({"schema": state}, tmp_path)) == []


def test_two_sets_of_weights_that_differ_are_refused(tmp_path: Path, state: State) -> None:
    with pytest.raises(UserError, match=r"two sets of weights that fit: 'student\.\*' and 'teacher\.\*'"):
        _load(Network(), _saved({"student": state, "teacher": averaged(state)}, tmp_path))


HEADS = {
    "missing": (lambda s: {k: v for k, v in s.items() if not k.startswith("fc.")}, "fc.weight is missing"),
    "other classes": (
        lambda s: s | {"fc.weight": torch.zeros(1000, 4), "fc.bias": torch.zeros(1000)},
        "fc.weight (1000, 4) instead of (10, 4)",
    ),
    "deeper": (
        lambda s: {k.replace("fc.", "fc.2."): v for k, v in s.items()} | {"fc.0.weight": torch.zeros(4, 4)},
        "fc.weight is missing",
    ),
}


@pytest.mark.parametrize("kind", HEADS)
def test_another_head_is_refused_or_left_fresh_as_asked(kind: str, tmp_path: Path, state: State) -> None:
    change, message = HEADS[kind]
    path = _saved({"state_dict": prefixed(change(state), "module.")}, tmp_path)
    with pytest.raises(UserError) as caught:
        _load(Network(), path)
    assert "fits the network but for its head" in caught.value.message
    assert message in caught.value.message
    assert "model.reset_head=true" in caught.value.hint

    fresh = Network()
    drawn = fresh.fc.weight.clone()
    assert _load(fresh, path, reset_head=True) == ["checkpoint x: the head starts fresh (fc.weight, fc.bias)"]
    assert torch.equal(fresh.fc.weight, drawn)
    assert torch.equal(fresh.conv1.weight, state["conv1.weight"])


OTHERS = {
    "a deeper network's": (lambda s: s | {"layers.1.0.weight": torch.zeros(4, 4, 3, 3)}, "1 unexpected: layers.1.0"),
    "a shallower network's": (lambda s: {k: v for k, v in s.items() if "layers" not in k}, "missing: layers.0.0"),
    "wider": (lambda s: s | {"bn1.weight": torch.zeros(8)}, "bn1.weight (8,) instead of (4,)"),
    "of whole numbers": (lambda s: s | {"conv1.weight": torch.zeros(4, 1, 3, 3, dtype=torch.int8)}, "torch.int8"),
    "without values": (lambda s: s | {"bn1.bias": torch.zeros(4, device="meta")}, "bn1.bias (torch.float32, torch.s"),
    "sparse": (lambda s: s | {"fc.weight": torch.zeros(10, 4).to_sparse()}, "1 of another kind: fc.weight"),
    "complex": (lambda s: s | {"fc.bias": torch.zeros(10, dtype=torch.complex64)}, "torch.complex64"),
    "for colour images": (lambda s: s | {"conv1.weight": torch.zeros(4, 3, 3, 3)}, "takes 3 channels, the network's 1"),
    "of another network": (lambda s: {f"other{i}": torch.zeros(1) for i in range(13)}, "other9 and 3 more"),
}


@pytest.mark.parametrize("reset_head", [False, True])
@pytest.mark.parametrize("kind", OTHERS)
def test_weights_that_do_not_fit_are_refused(kind: str, reset_head: bool, tmp_path: Path, state: State) -> None:
    change, message = OTHERS[kind]
    fresh = Network()
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(UserError, match="does not fit the network") as caught:
        _load(fresh, _saved({"model": prefixed(change(state), "module.")}, tmp_path), reset_head=reset_head)
    assert message in caught.value.message
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e300])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path, state: State) -> None:
    broken = state | {"bn1.weight": torch.full((4,), value, dtype=torch.float64)}
    with pytest.raises(UserError, match=r"not finite \(NaN or infinite\): bn1.weight"):
        _load(Network(), _saved(broken, tmp_path))


def test_a_network_that_refuses_its_weights_is_one_line(tmp_path: Path, state: State) -> None:
    class Picky(Network):
        def _load_from_state_dict(self, *_: object) -> None:
            raise RuntimeError("not these\nweights")

    with pytest.raises(UserError, match="checkpoint x cannot be loaded: not these weights"):
        _load(Picky(), _saved(state, tmp_path))


def test_lazy_modules_get_their_weights(tmp_path: Path, state: State) -> None:
    class Lazy(Network):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1, self.fc = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(10)

    lazy = Lazy()
    _load(lazy, _saved({"model": state}, tmp_path))
    assert all(torch.equal(value, state[key]) for key, value in lazy.state_dict().items())
    plain = Network()
    plain.load_state_dict(state)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(lazy.eval()(images), plain.eval()(images))


def test_a_tensor_under_two_names_may_be_given_under_one(tmp_path: Path) -> None:
    tied = nn.ModuleDict({"first": nn.Linear(3, 3), "second": nn.Linear(3, 3)})
    tied["second"].weight = tied["first"].weight
    state = {key: torch.rand_like(value) for key, value in tied.state_dict().items() if key != "second.weight"}
    _load(tied, _saved(state, tmp_path))
    assert torch.equal(tied["second"].weight, state["first.weight"])
