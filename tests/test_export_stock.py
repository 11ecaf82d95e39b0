"""Pruned networks that go as stock networks: what other programs load and answer without this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.quick import QUICK
from PIL import Image
from safetensors.torch import load_file, save_file

from consensus_cli import load_pruned
from consensus_cli.cli.main import main
from consensus_cli.config.composition import read_config
from consensus_cli.errors import UserError
from consensus_cli.experiment import export, inputs
from consensus_cli.models import zoo
from consensus_cli.models.spec import ModelSpec
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.storage.rundir import RunDir

VIT = "{img_size: 16, patch_size: 4, embed_dim: 16, depth: 4, num_heads: 2, init_values: 0.1, drop_path_rate: 0.1}"
WITHOUT_US = """
import json, sys
sys.modules["consensus_cli"] = None
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
folder = Path(sys.argv[1])
"""
OF_TIMM = """
import timm
network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
said = timm.data.resolve_model_data_config(network)
mean, std = (torch.tensor(said[name]).view(-1, 1, 1) for name in ("mean", "std"))
with torch.no_grad():
    logits = network((load_file(sys.argv[2])["images"] - mean) / std)
save_file({"logits": logits}, sys.argv[3])
"""
OF_TRANSFORMERS = """
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
network = AutoModelForImageClassification.from_pretrained(folder).eval()
files = [Image.open(file) for file in sorted(Path(sys.argv[2]).parent.glob("*.png"))]
with torch.no_grad():
    logits = network(**AutoImageProcessor.from_pretrained(folder)(files, return_tensors="pt")).logits
save_file({"logits": logits}, sys.argv[3])
"""


def run(folder: Path, *model: str) -> Path:
    words = ["metrics=fast", "finetune=none", "attacks=none", "evaluate.batch_sizes=[1]", "ratio=0.5", "threads=1"]
    assert main(["run", "--quiet", *QUICK, *words, *model, f"output_dir={folder}"]) == 0
    (found,) = (folder / "runs").iterdir()
    return found


@pytest.fixture(scope="module")
def vit_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("timm", reason="timm is an extra")
    return run(tmp_path_factory.mktemp("vit"), "model=timm", "model.name=vit_tiny_patch16_224", f"model.kwargs={VIT}")


def test_an_earlier_timm_is_one_line(vit_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timm: Any = zoo.import_timm()

    def save(model: object, save_directory: str, model_config: object = None, model_args: object = None) -> None:
        raise AssertionError("it must not be called")

    monkeypatch.setattr(timm.models, "save_for_hf", save)
    with pytest.raises(UserError, match="does not write what a network was made with") as raised:
        export.export(vit_run, "timm", tmp_path / "network")
    assert raised.value.hint == "pip install 'timm>=1.0.31'"
    assert not (tmp_path / "network").exists()


def check_answers(run_dir: Path, folder: Path, program: str, tmp_path: Path) -> None:
    """Checks that another process, in which this package cannot be imported, answers test images alike."""
    images = inputs.read_images(read_config(RunDir(run_dir).config)).test
    shown = next(images.subset(torch.arange(20)).batches(20))[0]
    save_file({"images": shown}, tmp_path / "images.safetensors")
    for number, image in enumerate((255 * shown[:, 0]).round().byte()):
        Image.fromarray(image.numpy()).save(tmp_path / f"{number:02d}.png")
    answers = tmp_path / "answers.safetensors"
    words = [sys.executable, "-c", WITHOUT_US + program, folder, tmp_path / "images.safetensors", answers]
    subprocess.run(list(map(str, words)), check=True, cwd=tmp_path)
    with torch.no_grad():
        expected = load_pruned(run_dir)(shown)
    found = load_file(answers)["logits"]
    assert found.shape == (20, 10)
    assert (found - expected).abs().max() < 1e-5


def test_timm_answers_alike_without_this_package(
    vit_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "written"
    assert main(["export", str(vit_run), "--format", "timm", "--out", str(out)]) == 0
    told, load = capsys.readouterr().out.splitlines()
    assert "same class on 64 of 64 test images" in told
    assert load == f"load it with: timm.create_model('local-dir:{out}', pretrained=True)"
    assert json.loads((out / "config.json").read_text())["model_args"]["depth"] == 2
    check_answers(vit_run, out, OF_TIMM, tmp_path)


def test_transformers_answer_alike_without_this_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers: Any = pytest.importorskip("transformers", reason="transformers is an extra")
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.ViTConfig(**sizes, image_size=16, patch_size=4).save_pretrained(tmp_path / "published")
    (tmp_path / "images").mkdir()
    colours = ["model.mean=[0.2,0.3,0.4]", "model.std=[0.3,0.25,0.2]"]
    network = ["model=hf", f"model.name={tmp_path / 'published'}", "model.weights=null", *colours]
    run_dir = run(tmp_path / "outputs", *network)
    assert main(["export", str(run_dir), "--format", "hf"]) == 0
    load = capsys.readouterr().out.splitlines()[-1]
    assert load.endswith(f"AutoModelForImageClassification.from_pretrained('{run_dir / 'pruned_hf'}')")
    config = json.loads((run_dir / "pruned_hf" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    assert config["id2label"]["3"] == "3"
    check_answers(run_dir, run_dir / "pruned_hf", OF_TRANSFORMERS, tmp_path / "images")


def test_a_folder_of_something_else(vit_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["export", str(vit_run), "--format", "timm", "--out", str(tmp_path)]) == 2
    assert "holds something else already" in capsys.readouterr().err
    assert main(["export", str(vit_run), "--format", "timm", "--out", str(tmp_path / "mine.txt")]) == 2
    assert "holds something else already" in capsys.readouterr().err
    for _ in range(2):
        # What was written before is replaced.
        assert main(["export", str(vit_run), "--format", "timm", "--out", str(tmp_path / "new")]) == 0


def test_blocks_that_compute_something_else_at_another_place(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    windows = {"img_size": 16, "patch_size": 1, "window_size": 4, "embed_dim": 8, "depths": [2, 4], "num_heads": [2, 2]}
    spec = ModelSpec("timm", "swin_tiny_patch4_window7_224", num_classes=10, kwargs=windows)
    torch.manual_seed(0)
    model = zoo.build(spec, 1).eval()
    remove_blocks(model, ["layers.1.blocks.2"])
    monkeypatch.setattr(export, "load_pruned", lambda _: model)
    assert main(["export", str(finished_run), "--format", "timm", "--out", str(tmp_path / "new")]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert "its blocks compute something else at another place" in error
    assert hint == "hint: any network can go as --format safetensors, torch-export or onnx"
    assert not (tmp_path / "new").exists()
