"""What is saved is read in turn with the original; the table of the blocks says which differences are noise."""

from __future__ import annotations

import doctest
import math

import pandas as pd
import pytest
import torch

from consensus_cli import EnergyMeter, costs, find_blocks
from consensus_cli.errors import UserError
from consensus_cli.evaluation.cost import quantities, savings
from consensus_cli.evaluation.cost.block_costs import Costs, pruned_copy
from consensus_cli.evaluation.cost.complexity import peak_memory_mib
from consensus_cli.evaluation.cost.quantities import UNITS, Amount
from consensus_cli.evaluation.cost.savings import MOST_PASSES, Conditions, measure, time_in_turn
from consensus_cli.models.copying import sharing
from consensus_cli.models.resnet import resnet

CPU = torch.device("cpu")


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return resnet(20)


IMAGES = torch.rand(2, 3, 16, 16)
UNDER = Conditions((3, 16, 16), CPU, latency_s=0.01)


def test_a_copy_that_shares_weights_loses_its_blocks_alone(network) -> None:
    names = [block.name for block in find_blocks(network, IMAGES) if block.removable]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pruned = pruned_copy(network, names[:1])
    assert {id(p) for p in pruned.parameters()} < {id(p) for p in network.parameters()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert [p.data_ptr() for p in sharing(network).buffers()] == [p.data_ptr() for p in network.buffers()]


def test_peak_memory_is_exact(network) -> None:
    names = [block.name for block in find_blocks(network, IMAGES) if block.removable]
    smaller = pruned_copy(network, names)
    found = measure(network, {"smaller": smaller}, "memory", UNDER)["smaller"]
    assert found.base == peak_memory_mib(network, (3, 16, 16), 1, CPU)
    assert found.value == found.low == found.high == peak_memory_mib(smaller, (3, 16, 16), 1, CPU)
    assert found.saving.share == found.saving.low == found.saving.high == 1 - found.value / found.base > 0


def test_every_network_is_read_once_a_turn_by_as_many_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    passes = {name: lambda name=name: called.append(name) for name in "abc"}
    found = time_in_turn(passes, 0.0, CPU, readings=7)
    assert {name: len(times) for name, times in found.items()} == dict.fromkeys("abc", 7)
    assert {called.count(name) for name in "abc"} == {8 * MOST_PASSES}
    turns = [called[start : start + 3 * MOST_PASSES : MOST_PASSES] for start in range(0, len(called), 3 * MOST_PASSES)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert turns[1] == turns[2][::-1]


def test_where_the_threads_change_all_is_timed_anew() -> None:
    before, ticks = torch.get_num_threads(), []

    def tick() -> None:
        ticks.append(1)
        torch.set_num_threads(before + 1 if len(ticks) >= 3 else before)

    try:
        found = time_in_turn({"a": int, "b": int}, 0.0, CPU, readings=4, tick=tick)
    finally:
        torch.set_num_threads(before)
    assert [len(times) for times in found.values()] == [4, 4]
    assert len(ticks) == 3 + 8


def test_intervals_hold_for_all_networks_at_once(network, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read(networks, under, readings):
        asked.append(readings)
        return {name: [10.0 - i, *[10.0 - i] * (readings - 1)] for i, name in enumerate(networks)}

    monkeypatch.setitem(savings._READ, "latency", read)
    (one,) = measure(network, {"x": network}, "latency", UNDER).values()
    assert one == (10, 9, 9, 9, (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1)))
    found = measure(network, {str(i): network for i in range(20)}, "latency", UNDER)
    assert asked == [6, 10]  # 2 · ½ⁿ ≤ 0.05, and 0.05 / 20
    assert found["3"].saving.share == pytest.approx(0.4)
    assert math.isfinite(found["3"].high)


def test_the_table_of_a_network(network) -> None:
    training = {module: module.training for module in network.modules()}
    found = costs(network, IMAGES, seconds=0.01, energy=EnergyMeter("BRA"))
    blocks = {block.name: block for block in find_blocks(network, IMAGES) if block.removable}
    table = found.table.set_index("block")
    assert list(table.index) == list(blocks)
    for name in blocks:
        own = sum(p.numel() for p in network.get_submodule(name).parameters())
        assert table.loc[name, "params"] == own
    assert (table["params_base"] == sum(p.numel() for p in network.parameters())).all()
    assert found.measured == ["latency", "energy", "memory"]
    assert found.savings("params") == pytest.approx(dict(table["params"] / table["params_base"]))
    assert found.savings("memory").keys() == blocks.keys()
    assert (table["memory_without_mib"] < table["memory_base_mib"]).all()
    assert str(found).splitlines()[0].split()[:2] == ["block", "stage"]
    assert training == {module: module.training for module in network.modules()}


def lines(*savings_pct: tuple[float, float, float], macs: int = 10) -> Costs:
    columns = ["latency_saved_pct", "latency_saved_low_pct", "latency_saved_high_pct"]
    table = pd.DataFrame(savings_pct, columns=columns)
    table.insert(0, "block", [f"b{i}" for i in range(len(table))])
    return Costs(table.assign(stage=0, shape="8×4×4", macs=macs, params=5, macs_base=100, params_base=50))


def test_blocks_of_the_same_work_share_their_median_where_they_differ_by_noise() -> None:
    alike = lines((3.0, 2.0, 4.0), (3.6, 3.0, 4.2), (3.2, 2.5, 3.9))
    assert alike.savings("latency") == pytest.approx({"b0": 0.032, "b1": 0.032, "b2": 0.032})
    assert alike.disagreeing("latency") == []
    assert alike.savings("macs") == pytest.approx({"b0": 0.1, "b1": 0.1, "b2": 0.1})
    apart = lines((3.0, 2.0, 3.1), (5.0, 4.0, 6.0), (3.2, 2.5, 3.9))
    assert apart.savings("latency") == pytest.approx({"b0": 0.03, "b1": 0.05, "b2": 0.032})
    assert apart.disagreeing("latency") == ["b0 b1 b2"]


def test_what_spans_zero_is_noise() -> None:
    found = lines((1.0, -0.5, 2.0), (1.0, 0.5, 2.0), (-1.0, -2.0, -0.1))
    assert list(found.is_noise("latency")) == [True, False, False]
    assert [line[-1] for line in found.rows()[1]] == [
        "1.0 [-0.5, 2.0] noise", "1.0 [0.5, 2.0]", "-1.0 [-2.0, -0.1]"
    ]  # fmt: skip


def test_memory_is_that_of_plain_pytorch(network) -> None:
    with pytest.raises(UserError, match="peak memory is measured in PyTorch"):
        measure(network, {"x": network}, "memory", Conditions((3, 16, 16), CPU, precision="bf16"))
    assert costs(network, IMAGES, seconds=0.01, precision="bf16").measured == ["latency"]
    with pytest.raises(UserError, match="batch_size is 0"):
        costs(network, IMAGES, batch_size=0)


@pytest.mark.parametrize(
    ("text", "quantity", "value"),
    [
        ("8 ms", "latency", 8),
        ("500us", "latency", 0.5),
        (".5s", "latency", 500),
        ("5 MB", "memory", 5e6 / 2**20),
        ("5 MiB", "memory", 5),
        ("40 MMACs", "macs", 40e6),
        ("40 M MACs", "macs", 40e6),
        ("0.3 M params", "params", 300_000),
        ("1e3 params", "params", 1000),
        ("2 J", "energy", 2),
        ("1 mWh", "energy", 3.6),
    ],
)
def test_amounts(text: str, quantity: str, value: float) -> None:
    assert Amount.parse("prune.target", text) == Amount(quantity, pytest.approx(value))


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("8", "prune.target=8 has no unit", "'8 ms'"),
        ("8 msec", "unknown unit of prune.target 'msec'", "did you mean 'ms'?"),
        ("8 mb", "unknown unit of prune.target 'mb'", "MB"),
        ("40 MFLOPs", "unknown unit of prune.target 'MFLOPs'", "MMACs"),
        ("-8 ms", "prune.target=-8 ms is not above 0", "at most"),
        ("0 J", "prune.target=0 J is not above 0", "at most"),
        ("1e999 J", "is not above 0", ""),
        ("ms", "prune.target=ms is not a number with a unit", "units: "),
        ("", "prune.target= is not a number with a unit", "units: "),
        ("8,5 ms", "unknown unit of prune.target ',5ms'", ""),
    ],
)
def test_what_is_no_amount(text: str, message: str, hint: str) -> None:
    with pytest.raises(UserError) as raised:
        Amount.parse("prune.target", text)
    assert message in raised.value.message
    assert hint in raised.value.hint


def test_amounts_as_people_write_them() -> None:
    assert doctest.testmod(quantities).failed == 0
    assert all(Amount.parse("x", f"3 {unit}").quantity == quantity for unit, (quantity, _) in UNITS.items())
