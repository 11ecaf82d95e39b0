"""What keeps an export from being written is one line, before the network runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from consensus_cli import data
from consensus_cli.cli.main import main
from consensus_cli.errors import UserError
from consensus_cli.experiment import export
from consensus_cli.storage.certificate import read_certificate
from consensus_cli.storage.rundir import RunDir


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes sure that neither images nor the network are read."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(data, "load", fail)
    monkeypatch.setattr(export, "load_pruned", fail)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    error, hint = capsys.readouterr().err.splitlines()
    assert hint.startswith("hint: ")
    return error


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("missing/net.safetensors", "there is no folder"),
        ("a_file/net.safetensors", "there is no folder"),
        (".", "is a folder"),
        ("net.onnx", "'net.onnx' ends like a file of another format"),
        ("net.pt2", "'net.pt2' ends like a file of another format"),
    ],
)
@pytest.mark.usefixtures("never_loaded")
def test_a_file_that_cannot_be_written(
    out: str, message: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_file").write_text("mine")
    assert main(["export", str(finished_run), "--out", str(tmp_path / out)]) == 2
    assert message in error_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


@pytest.mark.usefixtures("never_loaded")
def test_a_folder_without_permission(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # The superuser may write everywhere.
    monkeypatch.setattr(export, "try_writing", refuse)
    assert main(["export", str(finished_run), "--out", str(tmp_path / "net")]) == 2
    assert "net': Permission denied" in error_line(capsys)


@pytest.mark.parametrize("name", ["pruned_checkpoint", "baseline_checkpoint"])
@pytest.mark.usefixtures("never_loaded")
def test_the_weights_of_the_run_are_not_overwritten(
    name: str, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = getattr(RunDir(finished_run), name)
    before = file.read_bytes()
    assert main(["export", str(finished_run), "--out", str(file.parent / ".." / file.parent.name / file.name)]) == 2
    assert "holds the weights that the run has saved" in error_line(capsys)
    assert file.read_bytes() == before


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
@pytest.mark.usefixtures("never_loaded")
def test_a_missing_extra(
    package: str, finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for needed in ("onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, needed, None if needed == package else sys)
    assert main(["export", str(finished_run), "--format", "onnx"]) == 2
    assert f"ONNX needs a package that is not installed: {package}" in error_line(capsys)
    assert not (finished_run / "pruned.onnx").exists()


def test_images_that_are_gone(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise UserError("there is no folder 'images'", "set dataset.root")

    monkeypatch.setattr(data, "load", gone)
    assert main(["export", str(finished_run), "--out", str(tmp_path / "net")]) == 2
    assert "no test images to check the file with: there is no folder 'images'" in error_line(capsys)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else x.flatten(1) + 1


def test_a_network_that_the_exporter_cannot_take(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "load_pruned", lambda _: Branches())
    assert main(["export", str(finished_run), "--format", "torch-export", "--out", str(tmp_path / "net")]) == 2
    assert error_line(capsys).startswith("error: the export as torch-export raised ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "8"], "safetensors takes batches of any size: --batch is not for it"),
        (["--format", "timm", "--out", "net.onnx"], "'net.onnx' ends like a file of another format"),
        (["--format", "timm", "--batch", "8"], "timm takes batches of any size"),
        (["--format", "onnx", "--batch", "0"], "a number of images from 1 to 65536, or dynamic"),
        (["--format", "onnx", "--batch", "many"], "a number of images from 1 to 65536, or dynamic"),
    ],
)
@pytest.mark.usefixtures("never_loaded")
def test_batches_that_cannot_be(
    words: list[str], message: str, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(finished_run), *words]) == 2
    assert message in error_line(capsys)


def test_onnx_for_one_number_of_images_and_for_any_is_timed_in_turn_with_the_original(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is an extra")
    pytest.importorskip("onnxscript", reason="onnxscript is an extra")
    for batch in ("dynamic", "24"):
        words = ["export", str(finished_run), "--format", "onnx", "--batch", batch]
        assert main([*words, "--out", str(tmp_path / f"{batch}.onnx")]) == 0
    told = capsys.readouterr().out
    assert told.count("same class on 64 of 64 test images") == 2
    assert told.count("in ONNX Runtime, against the original there: ") == 2
    assert "times as fast at batch 24\n" in told
    exports = read_certificate(RunDir(finished_run))["exports"]
    timed = {name: [latency["batch"] for latency in exports[name]["latency"]] for name in ("onnx", "onnx, batch 24")}
    assert timed == {"onnx": [1, 128], "onnx, batch 24": [24]}
    entry = exports["onnx, batch 24"]
    assert (entry["batch"], entry["runtime"], entry["images"]) == (24, "onnxruntime", 64)
    assert entry["latency"][0]["original_ms"] > 0
    taken = [
        onnxruntime.InferenceSession(tmp_path / f"{batch}.onnx").get_inputs()[0].shape[0] for batch in (24, "dynamic")
    ]
    assert taken[0] == 24
    assert isinstance(taken[1], str)


def test_whole_batches_of_few_images() -> None:
    images = torch.arange(3.0).view(3, 1, 1, 1)
    assert export._repeated(images, 2).flatten().tolist() == [0, 1, 2, 0]
    assert export._repeated(images, 7).flatten().tolist() == [0, 1, 2, 0, 1, 2, 0]
