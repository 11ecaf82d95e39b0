"""The page holds whatever the source holds, names what is missing, and never takes a value for markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import vl_convert
from helpers.report_runs import CRITERIA, finished_row, sweep, write_results, write_scores

from consensus_cli.errors import UserError
from consensus_cli.report import charts, energy, robustness, tradeoff
from consensus_cli.report.page import write_report
from consensus_cli.report.palette import styles
from consensus_cli.report.runs import complete

MARKUP = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>"
FAILED: dict[str, object] = {"run_id": "a", "status": "failed", "started_at": "2025", "error": "out of memory"}


class Tags(HTMLParser):
    """Counts elements, and every address that an attribute names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]


def report(tmp_path: Path, rows: list[dict[str, object]]) -> str:
    out = tmp_path / "report.html"
    write_report(write_results(tmp_path, rows), out)
    return out.read_text(encoding="utf-8")


def payload(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="payload">(.*?)</script>', page, re.DOTALL)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sweep")
    write_scores(folder, "run-0000")
    return report(folder, sweep())


def test_every_section_is_filled(swept: str) -> None:
    tags = Tags(swept)
    content = payload(swept)
    # Six costs, two attacks, energy by phase.
    assert len(content["charts"]) == 9
    assert [len(network["steps"]) for network in content["networks"]] == [2, 0, 0, 0]
    assert swept.count('<tr id="run-') == 24
    assert tags.count["script"] == 3
    assert "consensus run model=resnet20 criterion=cka ratio=0.25 seed=0" in swept


def test_nothing_is_fetched(swept: str) -> None:
    assert [address for address in Tags(swept).addresses if not address.startswith(("#", "data:,"))] == []
    assert "default-src &#39;none&#39;" in swept or "default-src 'none'" in swept


def test_values_are_never_markup(tmp_path: Path, swept: str) -> None:
    names = (
        "model",
        "dataset",
        "criterion",
        "overrides",
        "energy_source",
        "country",
        "error",
        "removed_blocks",
        "device",
    )
    rows = [
        finished_row("a", **dict.fromkeys(names, MARKUP)),
        finished_row(MARKUP, status=MARKUP, accuracy_base_pct=MARKUP),
    ]
    page = report(tmp_path, rows)
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert Tags(page).count["script"] == Tags(swept).count["script"]
    assert payload(page)["networks"][0]["removed"] == MARKUP.split(";")


@pytest.mark.parametrize(
    ("rows", "sentences"),
    [
        ([], ["There are no runs yet.", "There are no runs."]),
        ([FAILED], ["1 failed of 1 runs", "out of memory"]),
        ([{"run_id": "a", "status": "interrupted", "started_at": "2025"}], ["1 interrupted of 1 runs"]),
        ([finished_row("a")], ["Every point is from a single seed"]),
        ([{**finished_row("a"), "macs_reduction_pct": None}], ["There is no Pareto front"]),
        ([{**finished_row("a"), "removed_blocks": None}], ["No finished run recorded which blocks it removed."]),
    ],
)  # fmt: skip
def test_what_is_missing_is_noted(tmp_path: Path, rows: list[dict[str, object]], sentences: list[str]) -> None:
    page = report(tmp_path, rows)
    for sentence in sentences:
        assert sentence in page


def test_missing_columns_are_noted(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("run_id,status,started_at,model,dataset\na,done,2025,resnet20,digits\n")
    runs, _ = write_report(tmp_path, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Columns that the results lack" in page
    assert "No run measured robustness" in page
    assert "No run measured how much energy it used." in page
    assert len(runs.rows) == 1


def test_rows_without_attacks_have_no_robustness(tmp_path: Path) -> None:
    row = {name: value for name, value in finished_row("a").items() if not name.startswith(("fgsm", "pgd"))}
    assert "No run measured robustness" in report(tmp_path, [row])


def test_an_unwritable_page_is_a_users_mistake(tmp_path: Path) -> None:
    source = write_results(tmp_path, [finished_row("a")])
    with pytest.raises(UserError, match="cannot write"):
        write_report(source, source / "report.html")


def chart_table(**values: object) -> pd.DataFrame:
    rows = [{**row, **values} for row in sweep()]
    return complete(pd.DataFrame(rows))[0]


@pytest.mark.parametrize("outcome", ["accuracy", "pgd"])
def test_trade_off_charts_are_valid_and_draw_every_run(outcome: str) -> None:
    rows = chart_table()
    points = tradeoff.points(rows)
    for cost in tradeoff.COSTS:
        chart = charts.tradeoff_chart(points, rows, cost, outcome, styles(points["series"]))
        assert chart is not None
        data = charts.datasets(points, rows, ["accuracy", "pgd"])
        svg = vl_convert.vegalite_to_svg({**chart, "datasets": data})
        assert svg.count('aria-roledescription="point"') >= 24 + 8
        assert f"saving in {cost.label} (%)" in svg
        assert "accuracy (%)" in svg


def test_an_interval_beyond_both_ends_of_the_axis_is_not_drawn() -> None:
    rows = chart_table()
    rows = rows[rows["criterion"] == "consensus"]
    points = tradeoff.points(rows)
    looks = styles(points["series"])

    def rules(half: float) -> int:
        shown = points.assign(accuracy_pruned_pct_ci95=half)
        chart = charts.tradeoff_chart(shown, rows, tradeoff.COSTS[0], "accuracy", looks)
        assert chart is not None
        svg = vl_convert.vegalite_to_svg({**chart, "datasets": charts.datasets(shown, rows, ["accuracy"])})
        return svg.count('aria-roledescription="rule mark"')

    assert rules(0.1) == rules(50.0) + 2


def test_heat_and_phase_charts_are_valid() -> None:
    rows = chart_table(corruption_fog_s3_base_pct=80.0, corruption_fog_s3_pruned_pct=71.5, shortcut_patch_pruned_pp=3.0)
    fog = robustness.means(rows, robustness.CORRUPTION).droplevel("task")
    svg = vl_convert.vegalite_to_svg(charts.heat_chart(fog, "%"))
    assert svg.count("71.5") >= len(CRITERIA)
    severities = {f"corruption_fog_s{s}_{network}_pct": 70.0 for s in range(1, 6) for network in ("base", "pruned")}
    for count, width in ((1, "container"), (2, 10 * 36)):
        names = ("fog", "rain")[:count]
        columns = {key.replace("fog", name): value for key, value in severities.items() for name in names}
        wide = charts.heat_chart(robustness.means(chart_table(**columns), robustness.CORRUPTION).droplevel("task"), "%")
        assert wide["width"] == width
    phases = charts.phase_chart(energy.by_phase(rows).droplevel("task"))
    assert phases is not None
    assert "energy per run (Wh)" in vl_convert.vegalite_to_svg(phases)


@pytest.mark.slow
def test_500_settings_of_3_seeds_make_a_small_page(tmp_path: Path) -> None:
    rows = sweep([i / 26 for i in range(1, 26)], 3, [*CRITERIA, *(f"metric_{i}" for i in range(16))])
    assert len(rows) == 1500
    for row in rows[::75]:
        write_scores(tmp_path, str(row["run_id"]))
    source = write_results(tmp_path, rows)
    page = tmp_path / "report.html"
    write_report(source, page)
    assert page.stat().st_size < 5_000_000
    assert page.read_text(encoding="utf-8").count('<tr id="run-') == 1500
