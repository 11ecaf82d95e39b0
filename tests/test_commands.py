"""The commands beside `run`: score, list blocks, report, compare, export, collect."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.quick import QUICK

import consensus_cli
from consensus_cli.cli.main import main

ROOT = Path(__file__).parents[1]


def test_score_ranks_without_pruning(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set((outputs / "runs").iterdir())
    words = ["metrics=[cka,wasserstein]", "scoring.bootstrap=5", f"output_dir={outputs}"]
    assert main(["score", *QUICK, *words]) == 0
    shown = capsys.readouterr().out
    assert "Kendall" in shown
    (folder,) = set((outputs / "runs").iterdir()) - before
    scores = pd.read_csv(folder / "scores.csv")
    assert len(scores) == 6 * 2
    assert set(scores["step"]) == {1}
    assert scores.groupby("block")["first_share"].first().sum() == pytest.approx(1)
    assert (scores["place_low"] <= scores["place_high"]).all()
    assert not (folder / "row.json").exists()
    shutil.rmtree(folder)


def test_list_blocks_says_what_stays_and_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["list", "blocks", "model=resnet20"]) == 0
    shown = capsys.readouterr().out
    assert "6 of 9 can be removed" in shown
    assert "changes the shape: first block of stage 2" in shown
    assert shown.count(" yes ") == 6


def test_a_network_of_which_nothing_can_go_is_listed_but_not_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    monkeypatch.setenv("COLUMNS", "160")
    words = ["model=timm", "model.name=repvgg_a0", f"output_dir={tmp_path}"]
    # With oneDNN its stem can crash the tests: docs/install.md.
    with torch.backends.mkldnn.flags(enabled=False):
        assert main(["list", "blocks", *words]) == 0
        assert "0 of 22 can be removed" in capsys.readouterr().out
        assert main(["run", *words]) == 2
        assert "none of the 22 residual blocks" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_report_compare_and_summary(
    outputs: Path, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(outputs), "--out", str(tmp_path / "page.html")]) == 0
    assert "<html" in (tmp_path / "page.html").read_text()
    capsys.readouterr()
    assert main(["report", str(outputs), "--markdown"]) == 0
    assert "resnet20 on digits" in capsys.readouterr().out
    assert main(["compare", *map(str, sorted((outputs / "runs").iterdir())[:2])]) == 0
    assert "removed, in order" in capsys.readouterr().out
    assert "resnet20" in (finished_run / "summary.md").read_text()
    assert (finished_run / "comparison.svg").stat().st_size > 0
    assert (finished_run / "removal.svg").stat().st_size > 0


@pytest.mark.parametrize("form", ["safetensors", "torch-export", "onnx"])
def test_export_agrees_with_the_network_on_real_images(
    form: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    out = tmp_path / "exported"
    assert main(["export", str(finished_run), "--format", form, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "same class on 64 of 64 test images" in told
    assert float(told.splitlines()[0].split()[-1]) < 1e-3
    assert out.stat().st_size > 0


def test_collect_rebuilds_the_results_from_run_directories(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(outputs / "runs", tmp_path / "runs")
    assert main(["collect", str(tmp_path)]) == 0
    assert "of them new" in capsys.readouterr().out
    collected, original = (pd.read_csv(folder / "results.csv") for folder in (tmp_path, outputs))
    assert collected["run_id"].tolist() == original["run_id"].tolist()
    assert collected["accuracy_pruned_pct"].tolist() == original["accuracy_pruned_pct"].tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export"], "required"),
        (["resume"], "required"),
        (["resume", "nowhere"], "not a run directory"),
        (["export", "nowhere"], "not a run directory"),
        (["report", "nowhere"], "nowhere"),
        (["report", "--colour", "red"], "unknown option '--colour'"),
        (["compare", "nowhere"], "two or more"),
        (["collect", "nowhere"], "holds neither runs/ nor results.csv"),
        (["list", "blocks", "model=resnet21"], "unknown model 'resnet21'"),
        (["score", "metrics=ckaa"], "unknown metrics 'ckaa'"),
    ],
)
def test_mistakes_are_one_line_and_a_hint(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert message in error
    assert hint.startswith("hint: ")
    assert list(tmp_path.iterdir()) == []


def test_unknown_export_format(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(finished_run), "--format", "onxx"]) == 2
    assert "did you mean 'onnx'?" in capsys.readouterr().err


def test_a_run_directory_cannot_name_any_class_but_a_network(finished_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    structure = copy / "checkpoints" / "pruned.json"
    text = (
        structure.read_text().replace('"cifar_resnet"', '"custom"').replace('"target": null', '"target": "os.system"')
    )
    structure.write_text(text)
    with pytest.raises(consensus_cli.errors.UserError, match=r"no torch.nn.Module"):
        consensus_cli.load_pruned(copy)


@pytest.mark.slow
def test_the_wheel_carries_its_configs(tmp_path: Path) -> None:
    uv = shutil.which("uv") or shutil.which("uv", path=str(ROOT / ".venv" / "bin"))
    if uv is None:
        pytest.skip("uv is not installed")
    subprocess.run([uv, "build", "--wheel", "--quiet", "--out-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-m", "consensus_cli", "run", "experiment=smoke", "--cfg", "job"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "name: resnet20" in done.stdout


def test_load_pruned_returns_an_ordinary_network(finished_run: Path) -> None:
    model = consensus_cli.load_pruned(finished_run)
    logits = model(torch.rand(2, 1, 16, 16))
    assert logits.shape == (2, 10)
    assert type(model.network).__name__ == "ResNet"
