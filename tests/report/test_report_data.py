"""What the report computes: points over seeds, the Pareto front, names of series, warnings, order of removal."""

from __future__ import annotations

import json
import math
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
from helpers.report_runs import finished_row, scores, sweep, write_results, write_scores
from hypothesis import given
from hypothesis import strategies as st

from consensus_cli.errors import UserError
from consensus_cli.experiment import announce
from consensus_cli.report import energy, figures, formatting, removal, robustness, tradeoff
from consensus_cli.report.runs import complete, load
from consensus_cli.report.text import caveats


def points_of(*rows: dict[str, object]) -> pd.DataFrame:
    return tradeoff.points(complete(pd.DataFrame(rows))[0])


def test_interval_over_seeds_is_students_t() -> None:
    rows = [
        finished_row(str(seed), seed=seed, accuracy_pruned_pct=value) for seed, value in enumerate((90.0, 92.0, 94.0))
    ]
    (point,) = points_of(*rows).to_dict("records")
    assert point["accuracy_pruned_pct"] == 92.0
    # t(0.975, 2) = 4.302653, the standard deviation is 2, of 3 seeds
    assert point["accuracy_pruned_pct_ci95"] == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-6)
    assert (point["runs"], point["seeds"]) == (3, 3)


def test_a_repeated_seed_counts_once() -> None:
    rows = [finished_row("a", seed=0, accuracy_pruned_pct=90.0), finished_row("b", seed=0, accuracy_pruned_pct=92.0)]
    (point,) = points_of(*rows, finished_row("c", seed=1, accuracy_pruned_pct=95.0)).to_dict("records")
    assert point["accuracy_pruned_pct"] == (91 + 95) / 2
    assert (point["runs"], point["seeds"]) == (3, 2)


def test_a_single_seed_has_no_interval() -> None:
    assert points_of(finished_row("a"))["accuracy_pruned_pct_ci95"].isna().all()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_pareto_front_is_what_nothing_dominates(pairs: list[tuple[int, int]]) -> None:
    table = pd.DataFrame(pairs, columns=["macs_reduction_pct", "accuracy_pruned_pct"], dtype=float).assign(
        task="t", control=""
    )
    expected = [not any(x >= a and y >= b and (x, y) != (a, b) for x, y in pairs) for a, b in pairs]
    assert list(tradeoff.pareto(table)) == expected


def test_pareto_front_is_per_task_and_needs_both_numbers() -> None:
    front = points_of(
        finished_row("a", macs_reduction_pct=10.0, accuracy_pruned_pct=90.0),
        finished_row("b", dataset="cifar10", macs_reduction_pct=5.0, accuracy_pruned_pct=80.0),
        finished_row("c", dataset="svhn", macs_reduction_pct=None),
    )
    assert dict(zip(front["task"], front["pareto"], strict=True)) == {
        "resnet20 on digits": True,
        "resnet20 on cifar10": True,
        "resnet20 on svhn": False,
    }


def test_best_saves_most_within_the_tolerated_loss() -> None:
    rows = [
        finished_row(str(loss), ratio=loss / 10, accuracy_delta_pp=-loss, macs_reduction_pct=10 * loss)
        for loss in (0.5, 1.0, 1.5)
    ]
    assert list(tradeoff.best(points_of(*rows))["macs_reduction_pct"]) == [10.0]


def test_drawn_keeps_the_front_and_the_consensus() -> None:
    rows = sweep(criteria=["best", "consensus", "worst", "random"], seeds=1)
    assert tradeoff.drawn(tradeoff.points(complete(pd.DataFrame(rows))[0]), 2) == ["best", "consensus"]


def test_accuracy_range_ends_where_accuracy_does() -> None:
    assert tradeoff.accuracy_range([0.0, 100.0]) == [-0.5, 100.5]


def test_accuracy_range_leaves_room_around_the_points_only() -> None:
    low, high = tradeoff.accuracy_range([90.0, 92.0, float("nan")])
    assert low == pytest.approx(89.5)
    assert high == pytest.approx(92.5)


def names(*overrides: str, **values: object) -> list[str]:
    rows = [finished_row(str(i), overrides=text, **values) for i, text in enumerate(overrides)]
    return list(complete(pd.DataFrame(rows))[0]["series"])


def test_seed_place_and_ratio_do_not_split_a_series() -> None:
    assert names("seed=0 output_dir=a ratio=0.1", "seed=1 device=cpu ratio=0.2") == ["consensus", "consensus"]


def test_runs_on_different_images_are_no_seeds_of_one_another() -> None:
    rows = [
        finished_row(root + str(seed), overrides=f"dataset.root={root} seed={seed}", seed=seed, images_hash=images)
        for root, seed, images in [("a", 0, "12"), ("a", 1, "34"), ("b", 0, "56"), ("b", 1, "78")]
    ]
    split = ["consensus, dataset.root=a"] * 2 + ["consensus, dataset.root=b"] * 2
    assert list(complete(pd.DataFrame(rows))[0]["series"]) == split
    # The same images in two places, of which each seed draws others; and rows that do not say.
    for again in ("12", "34", "12", "34"), ("", "", "", ""):
        same = [row | {"images_hash": images} for row, images in zip(rows, again, strict=True)]
        assert set(complete(pd.DataFrame(same))[0]["series"]) == {"consensus"}


def test_settings_split_a_series_and_name_it() -> None:
    assert names("seed=0", "seed=0 finetune=none") == ["consensus, defaults", "consensus, finetune=none"]


def test_columns_split_a_series_that_overrides_do_not() -> None:
    rows = [finished_row("a", aggregation="rank_sum"), finished_row("b", aggregation="kemeny")]
    assert list(complete(pd.DataFrame(rows))[0]["series"]) == [
        "consensus, aggregation rank_sum",
        "consensus, aggregation kemeny",
    ]


def test_command_quotes_what_a_shell_would_run() -> None:
    assert formatting.command("ratio=0.5 a;rm 'x y'") == "consensus run ratio=0.5 'a;rm' 'x y'"
    assert formatting.command("it's") == """consensus run 'it'"'"'s'"""


def test_numbers_as_text() -> None:
    assert formatting.fixed(-1234.567, 1, "%") == "−1,234.6 %"
    assert formatting.fixed(float("nan")) == "–"
    assert formatting.significant(0.0000262311) == "0.0000262"
    assert formatting.interval(94.256, 1.234, 2, "%") == "94.26 ± 1.23 %"
    assert formatting.interval(94.256, float("nan"), 2, "%") == "94.26 %"
    assert [formatting.duration(s) for s in (52.4, 200, 7500)] == ["52 s", "3 min 20 s", "2 h 5 min"]


def test_caveats_name_what_is_amiss(tmp_path: Path) -> None:
    rows = [
        finished_row("a", energy_estimated=True, test_images=200, attacked_images=50, device="cpu"),
        finished_row(
            "b",
            ratio=0.5,
            device="cuda",
            threads=2,
            version="0.2.0",
            energy_estimated=True,
            energy_source="CPU estimate from load (no energy counter) + RAM model + GPU by NVML",
        ),
        {"run_id": "c", "status": "failed", "started_at": "2025"},
    ]
    runs = load(write_results(tmp_path, rows))
    found = "\n".join(caveats(runs, tradeoff.points(runs.finished)))
    for expected in (
        "1 failed of 3 runs", "single seed", "energy of 1 of 2 runs is an estimate", "as few as 200 images",
        "as few as 50 images", "different devices (cpu, cuda)", "different numbers of threads", "0.1.0, 0.2.0",
    ):  # fmt: skip
        assert expected in found
    assert not runs.notes


def test_the_screen_says_which_part_of_the_energy_is_estimated() -> None:
    heard: list[str] = []
    screen = mock.Mock(warning=heard.append)
    for source in ("CPU estimate from load (no energy counter) + RAM model", "CPU estimate + RAM model + GPU by NVML"):
        announce.show_comparison(screen, finished_row("a", energy_estimated=True, energy_source=source))
    told = [text for text in heard if "energy" in text]
    assert ["GPU's is read" in text for text in told] == [False, True]


def test_what_macs_leave_out_is_a_caveat(tmp_path: Path) -> None:
    left_out = {"a": "aten::_fft_r2c × 4", "b": "aten::_fft_r2c × 4", "c": "nothing"}
    rows = [finished_row(run_id, macs_uncounted=text) for run_id, text in left_out.items()]
    runs = load(write_results(tmp_path, [*rows, finished_row("d")]))
    found = [caveat for caveat in caveats(runs, tradeoff.points(runs.finished)) if "MACs" in caveat]
    assert found == ["resnet20: MACs leave out aten::_fft_r2c × 4."]


def test_sound_runs_have_no_caveats(tmp_path: Path) -> None:
    runs = load(write_results(tmp_path, [finished_row(str(seed), seed=seed) for seed in range(3)]))
    assert caveats(runs, tradeoff.points(runs.finished)) == []


def test_text_where_numbers_belong_is_empty_and_noted() -> None:
    table, notes = complete(pd.DataFrame([finished_row("a", accuracy_pruned_pct="<b>x</b>"), finished_row("b")]))
    assert math.isnan(table["accuracy_pruned_pct"][0])
    assert notes == ["Text where numbers belong, read as empty: accuracy_pruned_pct."]


def test_a_damaged_line_is_noted(tmp_path: Path) -> None:
    path = write_results(tmp_path, [finished_row("a")])
    path.write_bytes(path.read_bytes() + b"half a li")
    assert "1 unfinished or damaged lines" in load(path).notes[0]


def test_rows_come_from_run_directories_too(tmp_path: Path) -> None:
    for name, content in (("a", finished_row("a")), ("b", [finished_row("b")]), ("c", 1)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "row.json").write_text(json.dumps(content))
    runs = load(tmp_path)
    assert list(runs.rows["run_id"]) == ["a", "b"]
    assert "holds no row" in runs.notes[0]
    assert list(load(tmp_path / "runs" / "a").rows["run_id"]) == ["a"]


def test_no_runs_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no results.csv and no runs"):
        load(tmp_path)


@pytest.mark.parametrize("run_id", ["../secret", "a\0b", ""])
def test_a_run_id_never_leads_elsewhere(tmp_path: Path, run_id: str) -> None:
    (tmp_path / "out" / "runs").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    rows, _ = complete(pd.DataFrame([finished_row("x", run_dir="")]))
    row = rows.iloc[0].copy()
    row["run_id"] = run_id
    runs = load(write_results(tmp_path / "out", [finished_row("x")]))
    assert runs.folder(row) is None


def test_robustness_gives_the_runs_own_interval_for_one_seed() -> None:
    rows, _ = complete(pd.DataFrame([finished_row("a")]))
    lines = robustness.attack_rows(tradeoff.points(rows), rows)
    assert [line[3:] for line in lines] == [
        ["clean", "95.00 %", "94.00 %", "−1.00 pp"],
        ["FGSM 8/255", "60.00 %", "55.00 %", "−5.00 [−7.0, −3.0] pp"],
        ["PGD 8/255", "40.00 %", "30.00 %", "−10.00 [−12.0, −8.0] pp"],
    ]


def test_corruptions_and_shortcuts_are_found_by_their_columns() -> None:
    values = {
        "corruption_fog_s3_base_pct": 80.0,
        "corruption_fog_s3_pruned_pct": 70.0,
        "shortcut_patch_pruned_pp": 12.0,
    }
    rows, _ = complete(pd.DataFrame([finished_row("a", **values)]))
    assert robustness.means(rows, robustness.CORRUPTION)["fog 3"].to_list() == [80.0, 70.0]
    newer = rows.rename(columns=lambda name: f"own_{name}" if name.startswith("corruption") else name)
    pd.testing.assert_frame_equal(
        robustness.means(newer, robustness.CORRUPTION), robustness.means(rows, robustness.CORRUPTION)
    )
    assert robustness.means(rows, robustness.SHORTCUT)["patch"].to_list() == [12.0]
    without = complete(pd.DataFrame([finished_row("a")]))[0]
    assert robustness.means(without, robustness.SHORTCUT).empty


def test_energy_by_phase_and_network() -> None:
    rows, _ = complete(pd.DataFrame([finished_row("a")]))
    headings, table = energy.phase_table(rows)
    assert headings[2:] == [
        "baseline (Wh)",
        "scoring (Wh)",
        "fine-tuning (Wh)",
        "evaluation (Wh)",
        "total (Wh)",
        "CO₂ (g)",
    ]
    assert table == [["resnet20 on digits", "consensus", "0.5", "0.1", "0.3", "0.1", "1", "0.1"]]
    healed, _ = complete(pd.DataFrame([finished_row("a"), finished_row("b", energy_heal_kwh=2e-4)]))
    headings, table = energy.phase_table(healed)
    assert (headings[6], table[0][6]) == ("healing (Wh)", "0.2")
    assert figures.phase_figure(energy.by_phase(healed).droplevel("task")) is not None
    inference, epoch = energy.network_rows(tradeoff.points(rows), rows)
    assert inference[3:] == ["inference, 1,000 images", "4", "3", "25.0 %", "0.4", "0.3"]
    assert epoch[3:] == ["one training epoch", "8", "6", "25.0 %", "0.8", "0.6"]
    assert energy.sources(rows) == ["a counter, electricity of BRA (1 runs)"]


def test_removal_shows_what_went_in_which_step() -> None:
    rows, _ = complete(pd.DataFrame([finished_row("a")]))
    found = removal.removal(rows.iloc[0], scores())
    assert found.blocks == ("layer1.1", "layer1.2", "layer2.1", "layer2.2")
    assert [step.removed for step in found.steps] == [("layer1.1",), ("layer2.1",)]
    # The two metrics swap the middle pair of four blocks: 5 pairs agree, 1 does not.
    assert found.steps[0].tau.loc["cka", "bures"] == pytest.approx((5 - 1) / 6)
    assert found.steps[0].ranks["bures"].to_list() == [1, 3, 2, 4]
    assert found.steps[1].importance.to_dict() == {"layer1.2": 4, "layer2.1": 2, "layer2.2": 6}


@pytest.mark.parametrize(
    "text", ["", "step,block\n1,a\n", "step,block,metric,distance,rank,sum\n1,a,cka,x,1,1\n", "\0"]
)
def test_damaged_scores_are_no_scores(tmp_path: Path, text: str) -> None:
    file = tmp_path / "scores.csv"
    file.write_text(text)
    assert removal.read_scores(file) is None
    assert removal.read_scores(tmp_path / "missing.csv") is None


def test_chosen_prefers_a_run_whose_scores_are_there(tmp_path: Path) -> None:
    rows = [finished_row("a", blocks_removed=3), finished_row("b", seed=1), finished_row("c", criterion="cka")]
    path = write_results(tmp_path, rows)
    write_scores(tmp_path, "b")
    found, left_out = removal.chosen(load(path), 5)
    assert [(network.title[-6:], len(network.steps)) for network in found] == [("seed 1", 2), ("seed 0", 0)]
    assert left_out == 1
