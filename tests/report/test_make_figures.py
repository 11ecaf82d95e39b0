"""The figures of the README come from the rows that lie beside them."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"


def texts(svg: Path) -> list[str]:
    """The texts of a figure: they are drawn as paths, each behind a comment that names it."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"))


def test_the_script_draws_the_figures_that_the_readme_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ROOT / "scripts" / "make_figures.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(FIGURES / "sweep"), str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    shown = re.findall(r"\]\(docs/figures/(.*?\.svg)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(path.name for path in tmp_path.iterdir()) == ["removal.svg", "tradeoff.svg"]
    for name in shown:
        assert (FIGURES / name).stat().st_size < 100_000
        assert texts(FIGURES / name) == texts(tmp_path / name)
    assert {"consensus", "cka", "random", "first"} <= set(texts(tmp_path / "tradeoff.svg"))


def test_the_rows_are_those_of_the_sweep_that_the_readme_names() -> None:
    rows = pd.read_csv(FIGURES / "sweep" / "results.csv")
    assert set(rows["status"]) == {"done"}
    found = re.search(r"consensus run -m (model=resnet32 .*)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    asked = dict(word.split("=", 1) for word in found[1].split() if "=" in word)
    for column in ("criterion", "ratio", "seed"):
        assert set(rows[column].astype(str)) == set(asked[column].split(","))
    sizes = [len(asked[column].split(",")) for column in ("criterion", "ratio", "seed")]
    assert len(rows) == sizes[0] * sizes[1] * sizes[2]
