"""What follows from the rows: decisions, regret, intervals, tables, figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from study.accuracies import Accuracies
from study.criteria import allowed_order, metric_orders, order_of
from study.decisions import Decisions, best_first
from study.evidence import Evidence, difference
from study.figures import FIGURES, draw
from study.markdown import MARKER, estimate
from study.plan import BASELINES, METRICS, VOTES
from study.tables import TABLES, stepwise_table, update, with_tables

from consensus_cli.errors import UserError
from consensus_cli.report.figures import save

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_criterion_decides_and_every_set_is_measured(bench, evidence):
    assert set(evidence.decisions.orders) == {*VOTES, *BASELINES, "oracle_single", "oracle_greedy"}
    assert [len(evidence.decisions.orders[name]) for name in ("consensus", "random", "first")] == [2, 2, 1]
    assert evidence.counts == {0.34: 2, 0.5: 3}
    for name in evidence.decisions.orders:
        for removed in evidence.removed(name, 3):
            # Stages of three blocks that keep two lose one each.
            assert sorted(block[:6] for block in removed) == ["layer1", "layer2", "layer3"]
    assert evidence.removed("first", 3) == [("layer1.1", "layer2.1", "layer3.1")]
    assert evidence.removed("last", 2) == [("layer2.2", "layer3.2")]


@pytest.mark.slow
def test_regret_is_the_difference_of_two_accuracies(bench, evidence, tmp_path):
    oracle = evidence.oracle(2)
    fresh = Accuracies(bench, tmp_path)
    best, first = (fresh.right(evidence.removed(n, 2)[0], "recalibrated", "report").mean() for n in (oracle, "first"))
    regret = evidence.regret("first", 2)
    assert regret.mean_pp == pytest.approx(100 * (best - first))
    assert regret.low_pp <= regret.mean_pp <= regret.high_pp
    chosen = {
        n: evidence.known["recalibrated", "selection", evidence.removed(n, 2)[0]].mean() for n in Decisions.oracles
    }
    assert chosen[oracle] == max(chosen.values())


def test_single_metrics_order_by_their_distance_and_stages_stop_losing():
    distances = {name: np.array([3.0, 1.0, 2.0]) for name in METRICS}
    distances["cka"] = np.array([1.0, 2.0, 3.0])
    assert order_of("cka", ["a", "b", "c"], distances) == ("a", "b", "c")
    assert order_of("consensus", ["a", "b", "c"], distances) == ("b", "c", "a")
    assert order_of("median_rank", ["a", "b", "c"], distances) == ("b", "c", "a")


def test_order_skips_blocks_that_a_stage_cannot_lose(bench):
    order = ("layer1.2", "layer1.1", "layer3.1", "layer2.2", "layer2.1", "layer3.2")
    assert allowed_order(order, bench.blocks, 2) == ("layer1.2", "layer3.1", "layer2.2")
    assert allowed_order(order, bench.blocks, 1) == order


def test_oracle_takes_the_block_that_costs_least_on_the_selection():
    known = {
        ("none", "selection", ("a",)): np.array([True, False]),
        ("none", "selection", ("b",)): np.array([True, True]),
        ("none", "report", ("a",)): np.array([True, True, True]),
    }
    assert best_first(known, ["a", "b"], "none") == ("b", "a")


def test_difference_of_equals_is_zero_and_of_opposites_is_all():
    ones, zeros = np.ones((2, 50), np.float32), np.zeros((3, 50), np.float32)
    same, all_of_it = difference(ones, ones), difference(ones, zeros)
    assert (same.mean_pp, same.low_pp, same.high_pp) == (0, 0, 0)
    assert not same.beyond_noise
    assert (all_of_it.mean_pp, all_of_it.beyond_noise) == (100, True)
    assert all_of_it.low_pp == pytest.approx(100)
    assert estimate(difference(zeros, ones)).startswith("−100.00 [−100.00")


def test_difference_has_the_interval_of_a_share():
    half = np.tile([1.0, 0.0], 200).astype(np.float32)[None]
    interval = difference(half, np.zeros_like(half))
    # 1.96 standard errors of a share of one half over 400 images: 4.9 pp
    assert interval.high_pp - interval.low_pp == pytest.approx(9.8, rel=0.1)


def test_draws_that_differ_widen_the_interval():
    rng = np.random.default_rng(0)
    alike = (rng.random((1, 400)) < 0.5).astype(np.float32).repeat(4, axis=0)
    unlike = alike.copy()
    unlike[0], unlike[1] = 1, 0
    reference = np.zeros((1, 400), np.float32)
    widths = [e.high_pp - e.low_pp for e in (difference(alike, reference), difference(unlike, reference))]
    assert widths[1] > 2 * widths[0]


@pytest.mark.slow
def test_largest_samples_agree_across_draws_as_their_orders_do(evidence):
    orders = metric_orders(evidence.scores, 16)["cka"]
    tau, share = evidence.stability(16)["cka"]
    assert share == float(orders[0][0] == orders[1][0])
    pairs = [(a, b) for a in range(6) for b in range(a)]
    place = [{name: i for i, name in enumerate(order)} for order in orders]
    names = orders[0]
    agree = sum(
        (place[0][names[a]] - place[0][names[b]]) * (place[1][names[a]] - place[1][names[b]]) > 0 for a, b in pairs
    )
    assert tau == pytest.approx(2 * agree / len(pairs) - 1)


@pytest.mark.slow
def test_tables_are_made_from_rows_and_stay_the_same(evidence, tmp_path):
    empty = "\n\n".join(f"<!-- table: {name} -->\n<!-- end -->" for name in TABLES)
    document = tmp_path / "study.md"
    document.write_text(empty)
    update(document, evidence)
    once = document.read_text()
    assert once.count("Not measured yet") == 6
    assert with_tables(once, evidence) == once
    share_pct = 100 * evidence.right(evidence.removed("first", 2)).mean()
    assert f"| first | 1 | {share_pct:.2f} |" in once
    with pytest.raises(UserError, match="unknown table 'nothing'"):
        with_tables("<!-- table: nothing -->\n<!-- end -->", evidence)


def test_document_shows_exactly_what_the_rows_give():
    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    assert sorted(match["name"] for match in MARKER.finditer(text)) == sorted(TABLES)
    rows = ROOT / "docs" / "study"
    without_rows = MARKER.sub(r"\1\3", text)
    measured = (rows / "paths.csv").is_file()
    assert text == (with_tables(text, Evidence.of_resnet56(rows)) if measured else without_rows)


def test_what_ranking_anew_gains_is_the_difference_of_the_accuracies_it_stands_below():
    found = Evidence.of_resnet56(ROOT / "docs" / "study")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in stepwise_table(found).splitlines()[2:]]
    cells = {(name, way): found_cells for name, way, _, *found_cells in lines}
    once = [found.right(found.removed("cka", count)[:2]).mean() for count in found.counts.values()]

    def shown(cell: str) -> float:
        return float(cell.strip("*").split(" ")[0].replace("−", "-"))

    for column, ranked_once in enumerate(once):
        cka, consensus = (shown(cells[name, "current"][column]) for name in ("cka", "consensus"))
        gained = shown(cells["cka", "current − one-shot (pp)"][column])
        assert gained == pytest.approx(cka - 100 * ranked_once, abs=0.011)
        assert shown(cells["cka", "current − original (pp)"][column]) == pytest.approx(
            cka - shown(cells["cka", "original"][column]), abs=0.011
        )
        assert shown(cells["consensus − cka", "current (pp)"][column]) == pytest.approx(consensus - cka, abs=0.011)


@pytest.mark.slow
def test_an_unmeasured_set_is_named(evidence):
    with pytest.raises(UserError, match=r"not measured, tuned: layer1\.1"):
        evidence.right([("layer1.1",)], "tuned")


@pytest.mark.slow
def test_figures_are_drawn_from_rows_and_stay_the_same(evidence, tmp_path):
    written = draw(evidence, tmp_path)
    assert [path.name for path in written] == [f"{name}.svg" for name in FIGURES]
    assert all(b"<svg" in path.read_bytes() for path in written)
    again = save(FIGURES["accuracy"](evidence), tmp_path / "again", ("svg",))
    assert again[0].read_bytes() == (tmp_path / "accuracy.svg").read_bytes()
