import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus_cli.errors import UserError
from consensus_cli.scoring.ranking.consensus import AGGREGATIONS, decide, kendall_tau, rank
from consensus_cli.scoring.ranking.kemeny import EXACT_BLOCKS, fewest_disagreements

FAMILIES = {"cka": "cka", "gaussian_alpha0": "gaussian", "gaussian_alpha1": "gaussian", "gaussian_alpha2": "gaussian"}

distance_vectors = st.lists(st.integers(0, 5), min_size=1, max_size=9).map(lambda values: np.array(values, dtype=float))


def decided(distances: dict[str, list[float]], **options):
    options = {"families": {name: name for name in distances}, "weights": {}} | options
    blocks = [f"block{i}" for i in range(len(next(iter(distances.values()))))]
    return decide(blocks, {name: np.array(values) for name, values in distances.items()}, **options)


def test_rank_of_a_worked_example():
    assert rank(np.array([0.3, 0.1, 0.3, 0.2])).tolist() == [3.5, 1, 3.5, 2]


@given(distance_vectors)
def test_rank_counts_the_smaller_and_shares_the_ties(distances):
    ranks = rank(distances)
    for i, distance in enumerate(distances):
        smaller, equal = (distances < distance).sum(), (distances == distance).sum()
        assert ranks[i] == smaller + (equal + 1) / 2


@pytest.mark.parametrize("bad", [[0.1, np.nan], [0.1, np.inf], [], [[0.1, 0.2]]])
def test_rank_refuses_what_cannot_be_ranked(bad):
    with pytest.raises(ValueError, match="distances must be"):
        rank(np.array(bad))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("least", range(5))
def test_the_block_with_the_least_distance_goes_wherever_it_stands(aggregation, least):
    # The authors' script sorted the ranks, then used positions in the sorted list as positions of blocks: the first
    # block always went. Here each position in turn holds the block that every metric finds least important.
    distances = np.roll([0.1, 0.5, 0.4, 0.3, 0.2], least)
    ranking = decided({"cka": distances, "wasserstein": 10 * distances}, aggregation=aggregation)
    assert ranking.least_important == f"block{least}"
    assert np.array_equal(ranking.order, np.argsort(distances))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_order_moves_with_the_blocks(aggregation):
    generator = np.random.default_rng(3)
    distances = {name: generator.random(8) for name in FAMILIES}
    ranking = decided(distances, aggregation=aggregation, families=FAMILIES)
    shuffle = generator.permutation(8)
    shuffled = decided(
        {name: values[shuffle] for name, values in distances.items()}, aggregation=aggregation, families=FAMILIES
    )
    if aggregation != "kemeny":  # equally good orders exist
        assert np.array_equal(shuffle[shuffled.order], ranking.order)
    assert np.allclose(sorted(shuffled.importance), sorted(ranking.importance))


def test_rank_sum_of_a_worked_example():
    ranking = decided({"cka": [0.2, 0.1, 0.3], "linear_alpha1": [1, 3, 2], "wasserstein": [5, 4, 6]})
    assert ranking.ranks["cka"].tolist() == [2, 1, 3]
    assert ranking.importance.tolist() == [2 + 1 + 2, 1 + 3 + 1, 3 + 2 + 3]
    # Blocks 0 and 1 tie at 5; scaled distances: (0.5 + 0 + 0.5) / 3 against (0 + 1 + 0) / 3, a tie again.
    assert ranking.order.tolist() == [0, 1, 2]


def test_ties_go_to_the_smaller_mean_scaled_distance():
    # Both blocks hold ranks 1 and 2; block 1 is further behind in the metric that it loses: 0.25 + 0 against 0 + 1.
    ranking = decided({"cka": [0.25, 0.0, 1.0], "wasserstein": [0.0, 10.0, 10.5]})
    assert ranking.importance.tolist() == [3, 3, 6]
    assert ranking.order.tolist() == [0, 1, 2]
    mirrored = decided({"cka": [0.0, 0.25, 1.0], "wasserstein": [10.0, 0.0, 10.5]})
    assert mirrored.order.tolist() == [1, 0, 2]


def test_ties_that_differ_by_rounding_are_ties():
    # 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1: the sums of blocks 0 and 1 are equal only up to rounding.
    distances = {"a": [1, 0, 9], "b": [0, 1, 9], "c": [0, 1, 9]}
    ranking = decided(distances, weights={"a": 0.3, "b": 0.1, "c": 0.2})
    assert ranking.importance[0] != ranking.importance[1]
    assert ranking.order.tolist() == [0, 1, 2]


def test_a_constant_metric_does_not_decide():
    ranking = decided({"cka": [0.3, 0.2], "wasserstein": [7, 7]})
    assert ranking.importance.tolist() == [3.5, 2.5]
    assert ranking.least_important == "block1"


def test_family_rank_sum_gives_three_gaussians_one_vote():
    distances = {"cka": [0.1, 0.9, 0.5], **{name: [3, 1, 2] for name in FAMILIES if name != "cka"}}
    assert decided(distances, families=FAMILIES).importance.tolist() == [1 + 9, 3 + 3, 2 + 6]
    ranking = decided(distances, families=FAMILIES, aggregation="family_rank_sum")
    assert ranking.importance.tolist() == [1 + 3, 3 + 1, 2 + 2]


def test_weights_act_inside_a_family_and_can_silence_it():
    distances = {"cka": [0.1, 0.9], "gaussian_alpha0": [1, 2], "gaussian_alpha1": [2, 1]}
    options = {"families": FAMILIES, "aggregation": "family_rank_sum"}
    ranking = decided(distances, weights={"gaussian_alpha0": 3}, **options)
    assert ranking.importance.tolist() == [1 + 1.25, 2 + 1.75]
    silenced = decided(distances, weights={"gaussian_alpha0": 0, "gaussian_alpha1": 0}, **options)
    assert silenced.importance.tolist() == [1, 2]


def test_median_rank_ignores_one_metric_that_disagrees():
    distances = {"a": [1, 2, 3], "b": [1, 2, 3], "c": [9, 1, 2]}
    assert decided(distances, aggregation="median_rank").importance.tolist() == [1, 2, 3]


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=6))
def test_median_rank_with_equal_weights_is_the_median(rows):
    distances = {str(i): np.array(row) for i, row in enumerate(rows)}
    ranking = decided(distances, aggregation="median_rank", weights=dict.fromkeys(distances, 0.1))
    assert np.allclose(ranking.importance, np.median([rank(values) for values in distances.values()], axis=0))


def test_median_rank_repeats_a_metric_as_often_as_it_weighs():
    distances = {"a": [1, 2, 3], "b": [3, 2, 1], "c": [2, 1, 3]}
    weighted = decided(distances, aggregation="median_rank", weights={"b": 3})
    repeated = decided({**distances, "b2": [3, 2, 1], "b3": [3, 2, 1]}, aggregation="median_rank")
    assert weighted.importance.tolist() == repeated.importance.tolist()


def disagreement(order: tuple[int, ...], disagreements: np.ndarray) -> float:
    return sum(disagreements[first, later] for first, later in itertools.combinations(order, 2))


def random_disagreements(blocks: int, seed: int) -> np.ndarray:
    votes = np.random.default_rng(seed).random((5, blocks)).argsort(axis=1)
    return (votes[:, :, None] > votes[:, None, :]).sum(axis=0).astype(float)


@pytest.mark.parametrize("seed", range(10))
def test_kemeny_is_as_good_as_the_best_of_all_orders(seed):
    disagreements = random_disagreements(6, seed)
    positions = fewest_disagreements(disagreements, np.arange(6))
    best = min(disagreement(order, disagreements) for order in itertools.permutations(range(6)))
    assert disagreement(tuple(np.argsort(positions, kind="stable")), disagreements) == best


@pytest.mark.parametrize("seed", range(3))
def test_kemeny_of_many_blocks_cannot_be_improved_by_a_move_nor_near_the_decision(seed):
    disagreements = random_disagreements(30, seed)
    start = np.random.default_rng(seed).permutation(30)
    order = np.argsort(fewest_disagreements(disagreements, start), kind="stable")
    cost = disagreement(tuple(order), disagreements)
    assert cost < disagreement(tuple(start), disagreements)
    moved = [np.insert(np.delete(order, i), place, order[i]) for i in range(30) for place in range(30)]
    assert min(disagreement(tuple(other), disagreements) for other in moved) >= cost
    head = order[:EXACT_BLOCKS]
    again = fewest_disagreements(disagreements[np.ix_(head, head)], np.arange(EXACT_BLOCKS)[::-1])
    assert disagreement(tuple(head[np.argsort(again, kind="stable")]), disagreements) == disagreement(
        tuple(head), disagreements
    )


def test_kemeny_of_a_worked_example():
    # Two of three metrics put block 2 before 0 before 1; the rank sum sees 0 and 2 tied.
    distances = {"a": [2, 3, 1], "b": [2, 3, 1], "c": [1, 2, 3]}
    assert decided(distances).importance.tolist() == [5, 8, 5]
    assert decided(distances, aggregation="kemeny").importance.tolist() == [2, 3, 1]


def test_kemeny_obeys_a_heavy_metric():
    ranking = decided({"a": [1, 2, 3], "b": [3, 2, 1]}, aggregation="kemeny", weights={"b": 1.5})
    assert ranking.order.tolist() == [2, 1, 0]


def test_kemeny_shares_positions_between_blocks_that_could_change_places():
    assert decided({"a": [1, 2, 3], "b": [2, 1, 3]}, aggregation="kemeny").importance.tolist() == [1.5, 1.5, 3]


def test_ranking_keeps_what_it_was_made_of():
    ranking = decided({"cka": [0.2, 0.1]})
    assert ranking.blocks == ("block0", "block1")
    assert ranking.distances["cka"].tolist() == [0.2, 0.1]


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"aggregation": "ranksum"}, "unknown aggregation 'ranksum'", "did you mean 'rank_sum'?"),
        ({"weights": {"ckaa": 1}}, "unknown metric in metrics.weights 'ckaa'", "did you mean 'cka'?"),
        ({"weights": {"cka": -1}}, "the weight of metric 'cka' is -1", "finite number, 0 or more"),
        ({"weights": {"cka": np.nan}}, "the weight of metric 'cka' is nan", "finite number, 0 or more"),
        ({"weights": {"cka": 0}}, "every metric weighs 0", "at least one metric"),
    ],
)
def test_what_a_user_gets_wrong(options, message, hint):
    with pytest.raises(UserError) as error:
        decided({"cka": [0.2, 0.1]}, **options)
    assert error.value.message == message
    assert hint in error.value.hint


def test_distances_must_be_one_per_block():
    with pytest.raises(ValueError, match=r"metric 'cka' has distances of shape \(3,\) for 2 blocks"):
        decide(["a", "b"], {"cka": np.arange(3.0)}, families={"cka": "cka"}, weights={})


def test_kendall_tau_of_a_worked_example():
    table = kendall_tau({"a": np.array([1.0, 2, 3, 4]), "b": np.array([1.0, 3, 2, 4]), "c": np.array([4.0, 3, 2, 1])})
    assert table.loc["a", "b"] == pytest.approx((5 - 1) / 6)
    assert table.loc["a", "c"] == pytest.approx(-1)
    assert (np.diag(table) == 1).all()
    assert np.array_equal(table, table.T)
