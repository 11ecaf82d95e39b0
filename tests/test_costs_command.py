"""`consensus costs`: what the network saves without each block, on screen, as CSV, and kept for the next time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.quick import QUICK

from consensus_cli.cli.main import main
from consensus_cli.experiment import kept_costs

WORDS = (*QUICK, "model=resnet20", "evaluate.energy_window_s=0.02", "threads=1")


def test_the_table_is_shown_written_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    words = ["costs", *WORDS, f"output_dir={tmp_path}"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    (run_dir,) = (tmp_path / "runs").iterdir()
    (kept,) = (tmp_path / "costs").glob("*.csv")
    assert kept.read_bytes() == (run_dir / "costs.csv").read_bytes()
    costs = kept_costs.read(kept)
    assert costs is not None
    assert list(costs.table["block"]) == [f"layer{stage}.{i}" for stage in (1, 2, 3) for i in (1, 2)]
    assert costs.measured == ["latency", "energy", "memory"]
    assert (costs.table["threads"] == 1).all()
    for word in ("layer3.2", "the whole network: macs 10.1 MMACs, params 272 kparams", "hold all at once", "noise"):
        assert word in shown, word
    # Kept for a machine and a way to run it: another batch size is measured anew.
    assert main([*words, "if_done=skip"]) == 0
    assert {path.read_bytes() for path in tmp_path.rglob("costs.csv")} == {kept.read_bytes()}
    assert main([*words, "if_done=skip", "prune.batch_size=2"]) == 0
    assert len(list((tmp_path / "costs").glob("*.csv"))) == 2
    kept.write_text("damaged")
    assert kept_costs.read(kept) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prune.runtime=onnx",), "unknown prune.runtime 'onnx'"),
        (("prune.batch_size=0",), "prune.batch_size=0 is out of range"),
        (("prune.confidence=1",), "prune.confidence=1.0 is out of range"),
        (("prune.runtime=onnxruntime", "prune.precision=bf16"), "onnxruntime computes in fp32 here, not in bf16"),
        (("prune.runtime=onnxruntime",), "ONNX needs a package that is not installed: onnxruntime"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "not installed" in message:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["costs", *WORDS, *words, f"output_dir={tmp_path / 'out'}"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert message in error
    assert hint.startswith("hint: ")
    assert not (tmp_path / "out" / "runs").exists()
