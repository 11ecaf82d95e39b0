"""How many blocks go, and which may go next."""

from __future__ import annotations

import pytest

from consensus_cli.errors import UserError
from consensus_cli.pruning.blocks import Block
from consensus_cli.pruning.schedule import (
    allowed,
    blocks_to_remove,
    check_enough_blocks,
    most_macs_removable,
    most_removable,
)


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
    with pytest.raises(UserError, match=f"ratio is {ratio:g}") as error:
        blocks_to_remove(ratio, 24)
    assert "(0, 1]" in error.value.hint


def test_all_candidates_may_go_at_first() -> None:
    blocks = three_stages()
    assert allowed(blocks, [], 1) == [block for block in blocks if block.removable]


def test_a_stage_at_its_minimum_is_closed() -> None:
    blocks = three_stages(3)
    gone = ["layer2.2", "layer1.1"]
    assert [block.name for block in allowed(blocks, gone, 1)] == ["layer1.2", "layer2.1", "layer3.1", "layer3.2"]
    assert [block.name for block in allowed(blocks, gone, 2)] == ["layer3.1", "layer3.2"]


@pytest.mark.parametrize(("minimum", "expected"), [(0, 24), (1, 24), (2, 21), (9, 0), (20, 0)])
def test_most_removable(minimum: int, expected: int) -> None:
    assert most_removable(three_stages(), minimum) == expected


@pytest.mark.parametrize(("minimum", "expected"), [(1, 1 + 2 + 4 + 5 + 7 + 8), (2, 2 + 5 + 8), (3, 0)])
def test_the_dearest_blocks_of_each_stage_bound_the_macs(minimum: int, expected: int) -> None:
    blocks = three_stages(3)
    costs = {block.name: macs for macs, block in enumerate(blocks)}
    assert most_macs_removable(blocks, costs, minimum) == expected


def test_removing_one_by_one_ends_where_promised() -> None:
    blocks, gone = three_stages(4), list[str]()
    while may_go := allowed(blocks, gone, 2):
        gone.append(may_go[0].name)
    assert len(gone) == most_removable(blocks, 2) == 6


def test_a_ratio_that_fits() -> None:
    assert check_enough_blocks(0.875, three_stages(), min_blocks_per_stage=2) == 21


def test_a_ratio_that_asks_for_too_many() -> None:
    message = r"ratio 0\.9 asks for 22 of 24 blocks; min_blocks_per_stage=2 lets 21 go"
    with pytest.raises(UserError, match=message) as error:
        check_enough_blocks(0.9, three_stages(), min_blocks_per_stage=2)
    assert error.value.hint == "lower the ratio to 0.875 or prune.min_blocks_per_stage"


def test_a_ratio_that_asks_for_none() -> None:
    with pytest.raises(UserError, match=r"ratio 0\.01 of 24 blocks removes none") as error:
        check_enough_blocks(0.01, three_stages(), min_blocks_per_stage=1)
    assert error.value.hint == "use at least 0.021"
