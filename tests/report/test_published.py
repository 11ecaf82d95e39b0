"""Published points stand beside the runs of their preset, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import vl_convert
from helpers.report_runs import finished_row, write_results

from consensus_cli.config import conf_files
from consensus_cli.config.composition import compose_run
from consensus_cli.pruning.schedule import blocks_to_remove
from consensus_cli.report import charts, figures, page, tradeoff
from consensus_cli.report.palette import styles
from consensus_cli.report.published import preset_of, published, tables
from consensus_cli.report.runs import complete, load

PRESET = "experiment=paper/cifar10_resnet56 budget=short"
#: preset -> candidate blocks of its network
CANDIDATES = {
    "cifar10_resnet32": 12,
    "cifar10_resnet44": 18,
    "cifar10_resnet56": 24,
    "cifar10_resnet110": 51,
    "cifar100_resnet56": 24,
    "imagenet_resnet50": 12,
}


@pytest.mark.parametrize(("preset", "candidates"), CANDIDATES.items())
def test_a_preset_has_a_row_at_each_published_point(preset: str, candidates: int) -> None:
    run = compose_run([f"experiment=paper/{preset}"])
    points = tables()[tables()["preset"] == preset]
    assert [blocks_to_remove(ratio, candidates) for ratio in run.ratios] == points["blocks_removed"].tolist()
    assert run.prune.min_blocks_per_stage == 2


def test_every_published_preset_exists() -> None:
    options = {name.removeprefix("paper/") for name in conf_files.choices("experiment") if name.startswith("paper/")}
    assert set(tables()["preset"]) == set(CANDIDATES) == options - {"transfer_cifar100_to_cifar10"}


def test_marks_are_changes_of_the_runs_own_baseline(tmp_path: Path) -> None:
    rows = [finished_row("a", overrides=PRESET), finished_row("b", overrides=PRESET, accuracy_base_pct=93.0, seed=1)]
    rows.append(finished_row("c", model="resnet56"))
    marks = published(load(write_results(tmp_path, rows)).finished)
    assert set(marks["task"]) == {"resnet20 on digits"}
    assert marks["accuracy_pct"].tolist() == pytest.approx([94 + change for change in marks["accuracy_delta_pp"]])
    assert marks["text"][2].splitlines()[0] == "published: +0.95 pp at 56.29 % of the MACs saved"


def test_runs_of_no_preset_and_synthetic_images_have_none() -> None:
    rows = [finished_row("a"), finished_row("b", overrides=PRESET, dataset="synthetic")]
    assert published(complete(pd.DataFrame(rows))[0]).empty
    assert preset_of("seed=1 'experiment=paper/a b'") == "a b"


def test_charts_of_accuracy_against_macs_show_them(tmp_path: Path) -> None:
    finished = complete(pd.DataFrame([finished_row("a", overrides=PRESET)]))[0]
    points, marks = tradeoff.points(finished), published(finished)
    looks = styles(points["series"])
    data = charts.datasets(points, finished, ["accuracy"])

    def drawn(cost: tradeoff.Cost, beside: pd.DataFrame | None) -> int:
        chart = charts.tradeoff_chart(points, finished, cost, "accuracy", looks, published=beside)
        assert chart is not None
        return vl_convert.vegalite_to_svg({**chart, "datasets": data}).count('aria-roledescription="point"')

    for cost in tradeoff.COSTS[:2]:
        expected = 7 if cost.name == "macs" else 0
        assert drawn(cost, marks) - drawn(cost, None) == expected
        figure = figures.tradeoff_figure(points, cost, "accuracy", looks, published=marks)
        assert figure is not None
        stars = [y for line in figure.axes[0].lines if line.get_marker() == "*" for y in line.get_ydata()]
        assert stars == marks["accuracy_pct"].tolist()[:expected]
    page.write_report(write_results(tmp_path, [finished_row("a", overrides=PRESET)]), tmp_path / "r.html", tmp_path)
    assert "published points of the preset" in (tmp_path / "r.html").read_text(encoding="utf-8")
