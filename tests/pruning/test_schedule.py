"""How many blocks go, and which may go next."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from torch import nn

from consensus_cli.errors import UserError
from consensus_cli.models.macs import MacCount
from consensus_cli.pruning import Block, Schedule
from consensus_cli.pruning.schedule import Amounts, allowed, blocks_to_remove, spread


def three_stages(per_stage: int = 9) -> list[Block]:
    return [
        Block(f"layer{stage + 1}.{i}", stage, (16, 8, 8), removable=i > 0, reason="" if i else "first block")
        for stage in range(3)
        for i in range(per_stage)
    ]


@pytest.mark.parametrize(
    ("ratio", "candidates", "expected"),
    [(0.5, 24, 12), (0.875, 24, 21), (1.0, 24, 24), (0.5, 11, 6), (0.25, 10, 3), (0.02, 24, 0), (0.3, 10, 3)],
)
def test_halves_round_up(ratio: float, candidates: int, expected: int) -> None:
    assert blocks_to_remove(ratio, candidates) == expected


@pytest.mark.parametrize("ratio", [0, -1, 1.5, float("nan")])
def test_ratio_out_of_range(ratio: float) -> None:
    for amounts in (None, counted(three_stages(), 100)):
        with pytest.raises(UserError, match=f"ratio is {ratio:g}") as error:
            Schedule(three_stages(), ratio, amounts=amounts).check()
        assert "(0, 1]" in error.value.hint


def test_all_candidates_may_go_at_first() -> None:
    blocks = three_stages()
    assert allowed(blocks, [], 1) == [block for block in blocks if block.removable]


def test_a_stage_at_its_minimum_is_closed() -> None:
    blocks = three_stages(3)
    gone = ["layer2.2", "layer1.1"]
    assert [block.name for block in allowed(blocks, gone, 1)] == ["layer1.2", "layer2.1", "layer3.1", "layer3.2"]
    assert [block.name for block in allowed(blocks, gone, 2)] == ["layer3.1", "layer3.2"]


@pytest.mark.parametrize(("minimum", "possible"), [(0, 24), (1, 24), (2, 21), (9, 0), (20, 0)])
def test_stages_at_their_minimum_bound_the_blocks(minimum: int, possible: int) -> None:
    """As many as the stages can lose may be asked for, not one more."""
    for asked in {max(1, possible), min(24, possible + 1)}:
        schedule = Schedule(three_stages(), asked / 24, min_blocks_per_stage=minimum)
        if asked <= possible:
            schedule.check()
        else:
            with pytest.raises(UserError, match=f"asks for {asked} of 24 .* lets {possible} go"):
                schedule.check()


def counted(blocks: list[Block], total: int) -> Amounts:
    """Block number i costs i MACs."""
    macs = MacCount({block.name: macs for macs, block in enumerate(blocks)} | {"": total}, ())
    return Amounts.of_macs(macs, blocks)


@pytest.mark.parametrize(("minimum", "most"), [(1, 1 + 2 + 4 + 5 + 7 + 8), (2, 2 + 5 + 8), (3, 0)])
def test_the_dearest_blocks_of_each_stage_bound_the_macs(minimum: int, most: int) -> None:
    blocks = three_stages(3)
    amounts = counted(blocks, 100)
    Schedule(blocks, max(most, 1) / 100, min_blocks_per_stage=minimum - (most == 0), amounts=amounts).check()
    with pytest.raises(UserError, match=f"at most {most}.0% can go") as error:
        Schedule(blocks, (most + 1) / 100, min_blocks_per_stage=minimum, amounts=amounts).check()
    assert error.value.hint == f"lower the ratio to {most / 100:.3f} or prune.min_blocks_per_stage"


def test_removing_one_by_one_ends_where_promised() -> None:
    blocks, gone = three_stages(4), list[str]()
    schedule = Schedule(blocks, 6 / 9, min_blocks_per_stage=2)
    schedule.check()
    while not schedule.reached(gone):
        gone += schedule.next([block.name for block in blocks], gone)
    assert gone == ["layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"]
    assert not schedule.allowed(gone)
    assert not schedule.next([block.name for block in blocks], gone)


def test_several_go_at_once_and_no_more_than_the_ratio_asks_for() -> None:
    blocks = three_stages(4)
    schedule = Schedule(blocks, 5 / 9, step=3, min_blocks_per_stage=2)
    order = ["layer3.3", "layer3.0", "layer3.2", "layer3.1", "layer1.1", "layer2.1", "layer2.2"]
    first = schedule.next(order, [])
    assert first == ["layer3.3", "layer3.2", "layer1.1"]
    assert schedule.next(order, first) == ["layer2.1", "layer2.2"]
    assert schedule.reached([*first, "layer2.1", "layer2.2"])
    assert schedule.target_blocks == 5


def test_a_share_of_the_macs_is_reached_when_they_are_gone() -> None:
    blocks = three_stages(3)
    schedule = Schedule(blocks, 0.15, step=4, amounts=counted(blocks, 100))
    assert schedule.next(["layer3.2", "layer1.1", "layer3.1", "layer2.1"], []) == ["layer3.2", "layer1.1", "layer3.1"]
    assert not schedule.reached(["layer3.2", "layer1.1", "layer2.2"])
    assert schedule.reached(["layer3.2", "layer3.1"])


def test_macs_that_nobody_counted() -> None:
    blocks = three_stages(3)
    with pytest.raises(UserError, match=r"Own has none that are counted \(they leave out aten::_fft_r2c × 4\)"):
        Schedule(blocks, 0.5, amounts=Amounts.of_macs(MacCount({"": 0}, ("aten::_fft_r2c × 4",)), blocks)).check("Own")


def test_a_ratio_that_fits() -> None:
    schedule = Schedule(three_stages(), 0.875, min_blocks_per_stage=2)
    schedule.check()
    assert schedule.target_blocks == 21


def test_a_ratio_that_asks_for_too_many() -> None:
    message = r"ratio 0\.9 asks for 22 of 24 blocks; min_blocks_per_stage=2 lets 21 go"
    with pytest.raises(UserError, match=message) as error:
        Schedule(three_stages(), 0.9, min_blocks_per_stage=2).check()
    assert error.value.hint == "lower the ratio to 0.875 or prune.min_blocks_per_stage"


def test_a_ratio_that_asks_for_none() -> None:
    with pytest.raises(UserError, match=r"ratio 0\.01 of 24 blocks removes none") as error:
        Schedule(three_stages(), 0.01).check()
    assert error.value.hint == "use at least 0.021"


@pytest.mark.parametrize("places", [1, 2, 5, 12, 24, 54])
def test_what_is_spread_is_as_even_as_whole_places_can_be(places: int) -> None:
    for going in range(1, places + 1):
        order = spread(places, going)
        assert sorted(order) == list(range(places))
        chosen = sorted(order[:going])
        gaps = [after - before for before, after in itertools.pairwise(chosen)]
        assert not gaps or max(gaps) - min(gaps) <= 1
        assert abs(chosen[0] - (places - 1 - chosen[-1])) <= 1


def test_half_of_what_is_spread_is_spread_as_well() -> None:
    assert sorted(spread(24, 8)[:4]) == [1, 7, 13, 19]


def test_the_evenly_spaced_do_not_depend_on_how_many_go_at_once() -> None:
    """21 of ResNet56's 24: what stays is one in the middle of each third, which here is one per stage."""
    for minimum in (1, 2):
        ends = []
        for step in (1, 2, 5, 21):
            schedule, gone = Schedule(three_stages(), 0.875, step, minimum), list[str]()
            while not schedule.reached(gone):
                gone += schedule.next(schedule.evenly_spaced(), gone)
            ends.append(gone)
        assert all(end == ends[0] for end in ends)
        left = {block.name for block in schedule.candidates} - set(ends[0])
        assert left == {"layer1.4", "layer2.4", "layer3.4"}


@pytest.mark.parametrize(("minimum", "instead"), [(1, "a.2"), (2, "b.1")])
def test_where_a_stage_must_keep_a_block_the_next_one_goes_instead(minimum: int, instead: str) -> None:
    blocks = [Block(f"a.{i}", 0, (), removable=i > 0) for i in range(3)]
    blocks += [Block(f"b.{i}", 1, (), removable=i > 0) for i in range(9)]
    schedule, gone = Schedule(blocks, 0.8, min_blocks_per_stage=minimum), list[str]()
    while not schedule.reached(gone):
        gone += schedule.next(schedule.evenly_spaced(), gone)
    assert sorted(gone) == sorted(["a.1", instead, "b.2", "b.3", "b.4", "b.5", "b.7", "b.8"])


def test_a_share_of_the_macs_is_reached_by_the_fewest_evenly_spaced_blocks() -> None:
    blocks = three_stages()
    amounts = Amounts("macs", 112, dict.fromkeys([block.name for block in blocks], 4))
    schedule = Schedule(blocks, 0.21, amounts=amounts)
    assert sorted(schedule.evenly_spaced()[:6]) == sorted(Schedule(blocks, 0.25).evenly_spaced()[:6])


def test_a_measured_goal_is_reached_where_the_measurement_says_so() -> None:
    blocks, asked = three_stages(3), []

    def enough(removed: Sequence[str]) -> bool:
        asked.append(tuple(removed))
        return len(removed) >= 3

    schedule = Schedule(blocks, 0.5, step=2, amounts=counted(blocks, 100), enough=enough)
    schedule.check()
    order = [block.name for block in blocks if block.removable]
    first = schedule.next(order, [])
    # No more is measured than has to be: a removal that is full ends it.
    assert (first, asked) == (["layer1.1", "layer1.2"], [(), ("layer1.1",)])
    assert schedule.next(order, first) == ["layer2.1"]
    assert schedule.largest() == order
    with pytest.raises(UserError, match="lets no block go"):
        Schedule(blocks, 0.5, min_blocks_per_stage=3, enough=enough).check()


def test_what_is_left_to_go_and_where() -> None:
    blocks = three_stages(3)
    schedule = Schedule(blocks, 0.15, min_blocks_per_stage=2, amounts=counted(blocks, 100))
    assert schedule.left(["layer3.2"]) == pytest.approx(0.07)
    assert schedule.most_in_stage(["layer3.2"]) == {0: 1, 1: 1, 2: 0}
    assert schedule.largest() == ["layer1.2", "layer2.2", "layer3.2"]


def test_parameters_that_a_block_shares_do_not_go_with_it() -> None:
    network = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    blocks = [Block(name, 0, (3,), True) for name in "ab"]
    assert Amounts.of_params(network, blocks) == Amounts("params", 24, {"a": 12, "b": 12})
    network["b"].weight = network["a"].weight
    assert Amounts.of_params(network, blocks) == Amounts("params", 15, {"a": 3, "b": 3})
