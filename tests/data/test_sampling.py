from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus_cli.data.sampling import stratified_indices, stratified_split, stratified_subset
from consensus_cli.errors import UserError

LABELS = torch.tensor([2, 0, 1, 0, 2, 1, 0, 2, 1, 0])
label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(torch.tensor)


def test_indices_come_class_after_class() -> None:
    chosen = stratified_indices(LABELS, per_class=2, seed=0)
    assert LABELS[chosen].tolist() == [0, 0, 1, 1, 2, 2]
    assert len(set(chosen.tolist())) == 6


def test_all_of_a_class_can_be_drawn() -> None:
    chosen = stratified_indices(LABELS, per_class=3, seed=1)
    assert sorted(chosen[3:6].tolist()) == [2, 5, 8]


def test_seed_decides_which_images_are_drawn() -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    first = stratified_indices(labels, per_class=10, seed=3)
    assert torch.equal(first, stratified_indices(labels, per_class=10, seed=3))
    assert not torch.equal(first, stratified_indices(labels, per_class=10, seed=4))


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    stratified_indices(LABELS, per_class=2, seed=0)
    stratified_subset(LABELS, total=5, seed=0)
    stratified_split(LABELS, (0.5, 0.5), seed=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_class_with_too_few_images_is_named() -> None:
    with pytest.raises(UserError, match="class 1 has 3 images, 4 are asked for") as raised:
        stratified_indices(LABELS, per_class=4, seed=0)
    assert raised.value.hint == "set metrics.samples_per_class=3 or use more images of it"
    with pytest.raises(UserError) as raised:
        stratified_indices(torch.tensor([0, 0, 1]), per_class=2, seed=0)
    # One is too few for every metric.
    assert raised.value.hint == "use more images of it"


@settings(max_examples=50, deadline=None)
@given(labels=label_lists, total=st.integers(0, 70), seed=st.integers(0, 5))
def test_subset_has_exactly_the_total_spread_evenly(labels: torch.Tensor, total: int, seed: int) -> None:
    chosen = stratified_subset(labels, total, seed)
    assert len(set(chosen.tolist())) == len(chosen) == min(total, len(labels))
    assert chosen.tolist() == sorted(chosen.tolist())
    available, drawn = labels.bincount(minlength=5), labels[chosen].bincount(minlength=5)
    # A class may only stay two behind another if it has nothing left to give.
    lagging = drawn < drawn.max() - 1
    assert torch.equal(drawn[lagging], available[lagging])


def test_subset_depends_on_the_seed() -> None:
    labels = torch.arange(100) % 2
    assert not torch.equal(stratified_subset(labels, 10, seed=0), stratified_subset(labels, 10, seed=1))


def test_subset_of_nothing_is_empty() -> None:
    assert stratified_subset(torch.empty(0, dtype=torch.int64), 5, seed=0).tolist() == []


@settings(max_examples=50, deadline=None)
@given(labels=label_lists, share=st.floats(0, 1), seed=st.integers(0, 5))
def test_split_parts_are_disjoint_complete_and_stratified(labels: torch.Tensor, share: float, seed: int) -> None:
    first, second = stratified_split(labels, (1 - share, share), seed)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(labels)))
    counts, held_out = labels.bincount(minlength=5), labels[second].bincount(minlength=5)
    assert bool(((held_out - share * counts).abs() <= 0.5 + 1e-6).all())


def test_split_by_hand() -> None:
    labels = torch.tensor([0] * 10 + [1] * 20)
    parts = stratified_split(labels, (0.7, 0.1, 0.2), seed=0)
    assert [labels[part].bincount().tolist() for part in parts] == [[7, 14], [1, 2], [2, 4]]


@pytest.mark.parametrize("fractions", [(0.5, 0.4), (1.2, -0.2)])
def test_split_refuses_shares_that_are_none(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        stratified_split(LABELS, fractions, seed=0)
