"""Curves over epsilon, and what keeps accuracy under attack from saying something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import vl_convert
from helpers.report_runs import finished_row, write_results

from consensus_cli.config.composition import compose_run
from consensus_cli.evaluation.robustness.adversarial import check_sanity
from consensus_cli.evaluation.robustness.attacks import Attack
from consensus_cli.experiment import announce
from consensus_cli.report import charts, figures, robustness
from consensus_cli.report.runs import complete, load
from consensus_cli.report.text import markdown


def attacked(name: str, eps255: float, base: float, pruned: float, half: float = 1.0) -> dict[str, Any]:
    delta = pruned - base
    ends = {f"{name}_ci95_low": delta - half, f"{name}_ci95_high": delta + half}
    values = {f"{name}_eps255": eps255, f"{name}_base_pct": base, f"{name}_pruned_pct": pruned}
    return values | {f"{name}_delta_pp": delta} | ends


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    return complete(pd.DataFrame(rows))[0]


CURVE = (
    attacked("fgsm_eps1", 1, 70.0, 66.0) | attacked("fgsm_eps4", 4, 64.0, 60.0) | attacked("pgd_eps1", 1, 62.0, 58.0)
)
CLEAN = {"clean_base_pct": 90.0, "clean_pruned_pct": 89.0}


def test_the_suite_is_a_curve_of_two_attacks() -> None:
    suite = compose_run(["attacks=curve"]).attacks.suite
    found = {(attack.name, attack.eps255) for attack in suite.values()}
    assert found == {(name, eps255) for name in ("fgsm", "pgd") for eps255 in (1, 2, 4, 8)}
    assert {suite[name].eps255 for name in ("fgsm", "pgd")} == {8}


def test_a_curve_begins_without_attack_and_follows_epsilon() -> None:
    other = finished_row("b", ratio=0.5, **CURVE, **CLEAN)
    table = robustness.curves(frame(finished_row("a", **CURVE, **CLEAN), other))
    fgsm = table[(table["attack"] == "FGSM") & (table["line"] == "original")]
    assert fgsm["eps255"].tolist() == [0, 1, 4, 8]
    assert fgsm["accuracy_pct"].tolist() == [90, 70, 64, 60]
    assert set(table["line"]) == {"original", "consensus, 25 % of the blocks", "consensus, 50 % of the blocks"}
    assert robustness.curves(frame(finished_row("a"))).empty
    for _, curve in table.groupby("attack"):
        svg = vl_convert.vegalite_to_svg(charts.curve_chart(curve))
        assert "epsilon (1/255)" in svg
        drawn = figures.curve_figure(curve).axes[0].lines
        assert drawn[0].get_label() == "original"
        assert len(drawn) == 3


def test_labels_name_the_attack_and_its_strength_once() -> None:
    rows = frame(finished_row("a", **CURVE))
    assert [robustness.attack_label(name, rows) for name in ("fgsm_eps1", "fgsm")] == ["FGSM 1/255", "FGSM 8/255"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (attacked("pgd", 8, 4.9, 0.0), "PGD 8/255: both networks are below 5 % or above 95 %"),
        (attacked("pgd", 8, 99.0, 95.5), "PGD 8/255: both networks are below 5 % or above 95 %"),
        (attacked("pgd", 8, 5.1, 0.0, half=9), "PGD 8/255: the 95 % interval of the change spans zero"),
        (
            attacked("square", 8, 39.0, 31.0),
            "SQUARE 8/255 leaves fewer images standing than every attack with gradients",
        ),
        (
            attacked("square", 8, 41.0, 29.0),
            "SQUARE 8/255 leaves fewer images standing than every attack with gradients",
        ),
        # AutoAttack ends with Square and so never leaves more standing: it says nothing of gradients.
        (
            attacked("square", 8, 41.0, 29.0) | attacked("autoattack", 8, 40.0, 28.0),
            "SQUARE 8/255 leaves fewer images standing than every attack with gradients",
        ),
    ],
)
def test_what_an_attack_cannot_say_is_a_warning(values: dict[str, Any], expected: str) -> None:
    (warning,) = robustness.warnings(frame(finished_row("a", **values)))
    assert warning.startswith(expected)


@pytest.mark.parametrize(
    "values",
    [{}, attacked("square", 8, 41.0, 31.0), attacked("square", 4, 1.0, 20.0), attacked("autoattack", 8, 9.0, 6.0)],
)
def test_attacks_that_say_something_raise_no_warning(values: dict[str, Any]) -> None:
    assert robustness.warnings(frame(finished_row("a", **values))) == []


def test_the_report_says_of_how_many_runs_a_warning_holds(tmp_path: Path) -> None:
    rows = [finished_row("a", **attacked("pgd", 8, 1.0, 0.0)), finished_row("b", seed=1, **CURVE, **CLEAN)]
    source = write_results(tmp_path, rows)
    assert "PGD 8/255 (1 of 2 runs): both networks are below" in " ".join(robustness.warnings(load(source).finished))
    assert "1 of 2 runs" in markdown(source)


def test_the_screen_warns_of_a_row() -> None:
    class Heard:
        def __init__(self) -> None:
            self.warnings: list[str] = []

        def warning(self, text: str) -> None:
            self.warnings.append(text)

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    heard = Heard()
    announce.show_comparison(heard, finished_row("a", **attacked("pgd", 8, 1.0, 0.0)))  # type: ignore[arg-type]
    assert [text for text in heard.warnings if text.startswith("PGD 8/255: both networks are below 5 %")]


def test_one_long_step_may_leave_more_standing_and_many_steps_may_not() -> None:
    result = {"base_pct": 30.0, "pruned_pct": 30.0, "clean_base_pct": 90.0, "clean_pruned_pct": 90.0}
    more = result | {"base_pct": 60.0}
    check_sanity([(Attack("fgsm", eps255=4), result), (Attack("fgsm", eps255=8), more)], images=1000)
    with pytest.raises(RuntimeError, match="leaves more"):
        check_sanity([(Attack("pgd", eps255=4), result), (Attack("pgd", eps255=8), more)], images=1000)
