"""Markdown, LaTeX, comparison on screen, summary of a run, figures for papers."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from helpers.report_runs import finished_row, scores, sweep, write_results, write_scores
from matplotlib.container import ErrorbarContainer

from consensus_cli.errors import UserError
from consensus_cli.report import palette, tradeoff
from consensus_cli.report.comparison import compare_runs
from consensus_cli.report.figures import FORMATS, removal_figure, save, slug, tradeoff_figure
from consensus_cli.report.page import write_report
from consensus_cli.report.removal import removal
from consensus_cli.report.run_summary import write_summary
from consensus_cli.report.runs import complete
from consensus_cli.report.text import latex, markdown, markdown_table
from consensus_cli.storage.rundir import RunDir


def test_markdown_has_every_point_and_marks_the_front(tmp_path: Path) -> None:
    rows = [
        finished_row("a"),
        finished_row("b", criterion="cka", accuracy_pruned_pct=80.0, macs_reduction_pct=10.0),
    ]
    text = markdown(write_results(tmp_path, rows))
    assert "**consensus**" in text
    assert "| cka |" in text
    assert "- warning: Every point is from a single seed" in text
    assert "## Robustness of the Pareto front" in text


def test_markdown_cannot_be_broken_by_values() -> None:
    table = markdown_table(("a",), [["x|y\n<b>`*"]])
    assert table.splitlines()[-1] == r"| x\|y &lt;b&gt;\`\* |"


def test_markdown_of_no_runs_has_a_note(tmp_path: Path) -> None:
    assert "There are no runs yet." in markdown(write_results(tmp_path, []))


def test_latex_escapes_values_and_marks_the_front(tmp_path: Path) -> None:
    text = latex(write_results(tmp_path, [finished_row("a", criterion="100%_$x$")]))
    assert r"100\%\_\$x\$" in text
    assert r"\toprule" in text
    line = next(line for line in text.splitlines() if "resnet20" in line)
    assert line.endswith(r"& * \\")
    assert line.count("&") == 8


def run_dir(folder: Path, row: dict[str, object]) -> Path:
    folder.mkdir(parents=True)
    (folder / "row.json").write_text(json.dumps(row))
    return folder


def test_compare_puts_runs_side_by_side(tmp_path: Path) -> None:
    plain = {name: value for name, value in finished_row("b").items() if not name.startswith("pgd")}
    a, b = run_dir(tmp_path / "a", finished_row("a")), run_dir(tmp_path / "b", plain)
    columns, table = compare_runs([a, b])
    rows = {row[0]: row[1:] for row in table}
    assert columns == ("", "a", "b")
    assert rows["accuracy"] == ("95.00 % → 94.00 % (−1.00 pp)",) * 2
    assert rows["latency, batch 128"] == ("20.00 ms → 10.00 ms (−50.00 %)",) * 2
    assert rows["PGD 8/255"] == ("40.00 % → 30.00 % (−10.00 pp [−12.0, −8.0])", "–")
    assert rows["removed, in order"] == ("layer1.1 layer2.1",) * 2


def test_compare_needs_two_single_runs(tmp_path: Path) -> None:
    single = run_dir(tmp_path / "a", finished_row("a"))
    with pytest.raises(UserError, match="two or more"):
        compare_runs([single])
    with pytest.raises(UserError, match="holds 2 runs, not one"):
        compare_runs([single, write_results(tmp_path, [finished_row("a"), finished_row("b")])])


def test_summary_of_a_run(tmp_path: Path) -> None:
    folder = write_scores(tmp_path, "a_b")
    files = write_summary(RunDir(folder), finished_row("a_b"))
    assert [file.name for file in files] == ["summary.md", "comparison.svg", "removal.svg"]
    text = files[0].read_text(encoding="utf-8")
    assert "| MACs | 0.00 M | 0.00 M | −20.00 % |" in text
    assert "![removal](removal.svg)" in text
    assert "Removed, in order: layer1.1 layer2.1." in text
    assert "    consensus run model=resnet20 seed=0" in text
    assert all(file.read_bytes().startswith(b"<?xml") for file in files[1:])


def test_summary_without_scores_leaves_the_removal_out(tmp_path: Path) -> None:
    files = write_summary(RunDir(tmp_path), finished_row("a"))
    assert [file.name for file in files] == ["summary.md", "comparison.svg"]


@pytest.mark.slow
def test_figures_have_axes_units_and_embedded_fonts(tmp_path: Path) -> None:
    write_scores(tmp_path, "run-0000")
    # Two costs and one attack: every kind of figure, none of them many times over.
    gone = dict.fromkeys(("fgsm_pruned_pct", "params_reduction_pct", "latency_b128_base_ms"), None)
    gone |= dict.fromkeys(("energy_inference_reduction_pct", "energy_epoch_reduction_pct"), None)
    added = {"corruption_fog_pruned_pct": 50.0}
    rows = [row | gone | added for row in sweep(criteria=["consensus", "cost$_x"], seeds=2)]
    source = write_results(tmp_path, rows)
    _, figures = write_report(source, tmp_path / "r.html", tmp_path / "figures")
    names = {path.name for path in figures}
    stem = "resnet20-on-digits"
    for name in ("tradeoff_macs", "tradeoff_latency_b1", "robustness_pgd", "energy_phases", "corruption"):
        assert {f"{stem}_{name}.{kind}" for kind in FORMATS} <= names
    assert any(name.startswith("removal_01_") for name in names)
    assert any(name.startswith("ranks_01_") for name in names)
    for path in figures:
        content = path.read_bytes()
        if path.suffix == ".pdf":
            # TrueType fonts, whole in the file; Type 3 fonts are what journals reject.
            assert b"/FontFile2" in content
            assert b"/Type3" not in content
        if path.suffix == ".svg":
            assert b"<text" not in content
            assert b"<!-- saving in" in content or "tradeoff" not in path.name


def test_a_figure_leaves_out_what_is_wider_than_its_axis() -> None:
    rows = complete(pd.DataFrame(sweep(criteria=["consensus"])))[0]
    points = tradeoff.points(rows).assign(accuracy_pruned_pct_ci95=[0.1, 50.0])
    figure = tradeoff_figure(points, tradeoff.COSTS[0], "accuracy", palette.styles(points["series"]))
    assert figure is not None
    (drawn,) = (container for container in figure.axes[0].containers if isinstance(container, ErrorbarContainer))
    lengths = [path.get_extents().height for path in drawn[2][0].get_paths()]
    assert lengths == pytest.approx([0.2, 0.0])


def test_the_same_figure_has_the_same_bytes(tmp_path: Path) -> None:
    rows, _ = complete(pd.DataFrame([finished_row("a")]))
    network = removal(rows.iloc[0], scores())
    first, second = (save(removal_figure(network), tmp_path / name) for name in ("a", "b"))
    assert [path.suffix for path in first] == [".png", ".svg", ".pdf"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_looks_differ_in_grey_and_put_the_consensus_first() -> None:
    looks = palette.styles([*(f"metric_{i}" for i in range(30)), "consensus"])
    assert next(iter(looks)) == "consensus"
    assert len({(look.marker, look.dashes_px) for look in looks.values()}) == 31


def test_slug_is_a_plain_file_name() -> None:
    assert slug("../ResNet 20 on <x>") == "resnet-20-on-x"
    assert slug("///") == "unnamed"
