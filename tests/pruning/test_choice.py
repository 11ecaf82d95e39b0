"""The set of blocks that costs least importance for the saving wanted, against trying every set."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus_cli.pruning import Block
from consensus_cli.pruning.choice import by_value


def blocks_of(stages: list[int]) -> list[Block]:
    return [Block(f"b{i}", stage, (8,), removable=True) for i, stage in enumerate(stages)]


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_other_set_that_saves_enough_is_less_important(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    blocks = blocks_of(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    numbers = st.floats(0.01, 100)
    importance = np.array(data.draw(st.lists(numbers, min_size=count, max_size=count)))
    shares = data.draw(st.lists(st.integers(-500, 2000), min_size=count, max_size=count))
    savings = {block.name: share / 10_000 for block, share in zip(blocks, shares, strict=True)}
    limits = {block.stage: data.draw(st.integers(0, 3)) for block in blocks}
    wanted = data.draw(st.floats(0.01, 0.9))
    order = by_value(blocks, importance, savings, wanted, limits)
    assert sorted(order) == sorted(savings)

    saved = {name: max(0.0, share) for name, share in savings.items()}
    worth = dict(zip(savings, importance, strict=True))
    stage = {block.name: block.stage for block in blocks}
    possible = [
        names
        for size in range(count + 1)
        for names in itertools.combinations(savings, size)
        if all(number <= limits[s] for s, number in Counter(stage[name] for name in names).items())
    ]
    most = max(sum(saved[name] for name in names) for names in possible)
    enough = [n for n in possible if sum(saved[name] for name in n) >= min(wanted, most) - 1e-9]
    best = min(sum(worth[name] for name in names) for names in enough)
    # The best set stands in front, whatever its size.
    chosen = [order[:size] for size in range(count + 1) if set(order[:size]) in map(set, enough)]
    assert min(sum(worth[name] for name in names) for names in chosen) == pytest.approx(best, rel=1e-4, abs=1e-6)


def test_where_all_cost_the_same_the_criterion_s_own_order_holds() -> None:
    generator = np.random.default_rng(0)
    blocks = blocks_of([0] * 8 + [1] * 8 + [2] * 8)
    for wanted in (0.1, 0.3, 0.5, 0.84):
        importance = generator.integers(1, 12, 24).astype(float)  # many ties
        own = np.argsort(importance, kind="stable")
        ranked = [blocks[i] for i in own]
        order = by_value(
            ranked, importance[own], dict.fromkeys([b.name for b in blocks], 0.035), wanted, {0: 8, 1: 8, 2: 8}
        )
        assert order == [block.name for block in ranked]


def test_a_block_that_costs_much_goes_before_one_that_costs_little() -> None:
    blocks = blocks_of([0, 0, 0])
    savings = {"b0": 0.05, "b1": 0.30, "b2": 0.25}
    # 0.3 wanted: b1 alone (3.0) beats b0 + b2 (1.0 + 2.5); in the criterion's own order b0 goes first.
    assert by_value(blocks, np.array([1.0, 3.0, 2.5]), savings, 0.3, {0: 3})[0] == "b1"
    # Of a set, the ones of the best price go first.
    assert by_value(blocks, np.array([1.0, 3.0, 2.5]), savings, 0.55, {0: 3}) == ["b1", "b2", "b0"]
    # The stage may lose one: nothing reaches 0.55, so that the one that saves most goes.
    assert by_value(blocks, np.array([1.0, 3.0, 2.5]), savings, 0.55, {0: 1})[0] == "b1"


def test_a_set_that_keeps_to_the_saving_goes_before_a_better_one_that_overshoots() -> None:
    blocks, limits = blocks_of([0, 0, 0]), {0: 3}
    savings, importance = {"b0": 0.4, "b1": 0.2, "b2": 0.11}, np.array([1.0, 1.0, 1.0])
    assert by_value(blocks, importance, savings, 0.3, limits)[0] == "b0"
    assert set(by_value(blocks, importance, savings, 0.3, limits, overshoot=0.03)[:2]) == {"b1", "b2"}
    # No set saves between 0.45 and 0.46.
    assert by_value(blocks, importance, savings, 0.45, limits, overshoot=0.01) == by_value(
        blocks, importance, savings, 0.45, limits
    )


def test_importance_below_zero_counts_by_its_rank() -> None:
    blocks = blocks_of([0, 0, 0])
    savings = dict.fromkeys(["b0", "b1", "b2"], 0.1)
    assert by_value(blocks, np.array([2.0, -5.0, -1.0]), savings, 0.2, {0: 3}) == ["b1", "b2", "b0"]
