"""Runs that heal without training: their rows, their checkpoints, and runs that stop."""

from __future__ import annotations

import copy
import json
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.quick import QUICK
from helpers.stopping import after_finetuning, stop_run
from safetensors.torch import load_file

import consensus_cli as cc
from consensus_cli.cli.main import main
from consensus_cli.models.resnet import resnet
from consensus_cli.pruning.replacement import ChannelMap
from consensus_cli.storage.rundir import RunDir

WORDS = (*QUICK, "attacks=none", "evaluate.energy_window_s=0.05", "finetune=none", "criterion=kl", "threads=1")
HEALED = (*WORDS, "prune.replace=linear", "scoring.repair=true", "ratio=0.5")


@pytest.fixture(scope="module")
def healed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("healed")
    assert main(["run", *HEALED, f"output_dir={folder}"]) == 0
    return folder


def run_of(output_dir: Path) -> tuple[pd.Series, Path]:
    row = pd.read_csv(output_dir / "results.csv").iloc[-1]
    return row, output_dir / "runs" / row["run_id"]


def test_the_row_has_what_healing_took_and_the_macs_of_the_maps(healed: Path, tmp_path: Path) -> None:
    row, folder = run_of(healed)
    assert (row["replace"], row["blocks_removed"], row["finetune_s"]) == ("linear", 3, 0)
    assert 0 < row["maps"] <= 3
    assert row["heal_s"] > 0
    model = cc.load_pruned(folder)
    maps = [module for module in model.modules() if isinstance(module, ChannelMap)]
    assert len(maps) == row["maps"]
    assert main(["run", *WORDS, "ratio=0.5", f"output_dir={tmp_path}"]) == 0
    plain, _ = run_of(tmp_path)
    assert "replace" not in pd.read_csv(tmp_path / "results.csv").columns
    assert row["macs_pruned"] > plain["macs_pruned"]


def test_the_loaded_network_answers_as_the_measured_one(healed: Path) -> None:
    _, folder = run_of(healed)
    structure = json.loads((folder / "checkpoints" / "pruned.json").read_text())
    assert structure["maps"].keys() <= set(structure["removed_blocks"])
    model = cc.load_pruned(folder)
    saved = load_file(RunDir(folder).pruned_checkpoint)
    assert all(torch.equal(value, saved[key]) for key, value in model.network.state_dict().items())


def test_a_stopped_run_ends_as_one_that_was_not(healed: Path, tmp_path: Path) -> None:
    assert stop_run(tmp_path, *HEALED, when=after_finetuning(2), number=signal.SIGTERM) == signal.SIGTERM
    (folder,) = (tmp_path / "runs").iterdir()
    assert main(["resume", str(folder)]) == 0
    (row, _), (expected, before) = run_of(tmp_path), run_of(healed)
    for column in ("removed_blocks", "maps", "accuracy_pruned_pct", "macs_pruned"):
        assert row[column] == expected[column]
    assert (folder / "scores.csv").read_bytes() == (before / "scores.csv").read_bytes()
    found, wanted = (load_file(RunDir(path).pruned_checkpoint) for path in (folder, before))
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_maps_at_the_end_of_a_stage_cost_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*QUICK, "attacks=none", "evaluate.energy_window_s=0.05", "threads=1", "criterion=last", "ratio=0.2"]
    words += [
        "model=mobilenet_v2",
        "model.kwargs={width_mult: 0.35}",
        "finetune.epochs_per_step=0",
        "controls=[scratch]",
    ]
    assert main(["run", *words, "prune.replace=linear", f"output_dir={tmp_path / 'healed'}"]) == 0
    assert "2 of 2 maps folded into neighbouring layers, at no cost" in capsys.readouterr().out
    assert main(["run", *words, f"output_dir={tmp_path / 'plain'}"]) == 0
    healed, plain = (pd.read_csv(tmp_path / name / "results.csv") for name in ("healed", "plain"))
    assert healed["maps"].dropna().tolist() == [0]
    assert healed["macs_pruned"].tolist() == plain["macs_pruned"].tolist()
    for run_id in healed["run_id"]:
        folder = tmp_path / "healed" / "runs" / run_id
        assert "maps" not in json.loads(RunDir(folder).pruned_structure.read_text())
        assert not any(isinstance(module, ChannelMap) for module in cc.load_pruned(folder).modules())


def test_maps_of_branches_are_saved_with_the_network(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    kwargs = "{img_size: 16, patch_size: 4, embed_dim: 16, depth: 4, num_heads: 2}"
    words = ["model=timm", "model.name=vit_tiny_patch16_224", f"model.kwargs={kwargs}", "criterion=last", "ratio=0.5"]
    words += ["prune.granularity=branch", "prune.replace=linear", f"output_dir={tmp_path}"]
    assert main(["run", *WORDS, *words]) == 0
    row, folder = run_of(tmp_path)
    maps = [module for module in cc.load_pruned(folder).modules() if isinstance(module, ChannelMap)]
    assert len(maps) == row["maps"] > 0


def test_a_share_of_the_macs_counts_those_of_the_maps(tmp_path: Path) -> None:
    words = [word for word in HEALED if not word.startswith("ratio=")]
    assert main(["run", *words, "prune=macs", "prune.replace=linear", "ratio=0.3", f"output_dir={tmp_path}"]) == 0
    row, _ = run_of(tmp_path)
    assert row["macs_reduction_pct"] >= 30


def test_maps_are_trained_on_where_there_is_training(tmp_path: Path) -> None:
    words = ("finetune=quick", "finetune.epochs_per_step=0.2", "prune.replace=scale", "criterion=first")
    assert main(["run", *WORDS, *words, "ratio=0.34", f"output_dir={tmp_path}"]) == 0
    row, folder = run_of(tmp_path)
    assert (row["replace"], row["status"]) == ("scale", "done")
    model = cc.load_pruned(folder)
    maps = [module for module in model.modules() if isinstance(module, ChannelMap)]
    assert len(maps) == row["maps"] > 0
    assert model(torch.rand(2, 1, 16, 16)).isfinite().all()


def test_refitted_layers_are_in_the_checkpoint_and_cost_nothing(tmp_path: Path) -> None:
    words = (*WORDS, "ratio=[0.34,0.5]", "prune.refit=true")
    assert main(["run", *words, f"output_dir={tmp_path}"]) == 0
    rows = pd.read_csv(tmp_path / "results.csv")
    assert rows["refit"].all()
    assert (rows["replace"] == "nothing").all()
    assert (rows["heal_s"] > 0).all()
    plain = tmp_path / "plain"
    assert main(["run", *WORDS, "ratio=0.5", f"output_dir={plain}"]) == 0
    expected, without = run_of(plain)
    row, folder = run_of(tmp_path)
    assert (row["removed_blocks"], row["macs_pruned"]) == (expected["removed_blocks"], expected["macs_pruned"])
    saved, before = (load_file(RunDir(path).pruned_checkpoint) for path in (folder, without))
    assert saved.keys() == before.keys()
    assert not torch.equal(saved["fc.weight"], before["fc.weight"])


def test_the_library_refits_as_the_command_does() -> None:
    torch.manual_seed(0)
    network = resnet(20).eval()
    images, labels = torch.rand(64, 3, 16, 16), torch.arange(64) % 10
    plain, fitted = copy.deepcopy(network), copy.deepcopy(network)
    samples = [(images, labels)]
    for pruned, refits in ((plain, False), (fitted, True)):
        for _ in cc.prune(pruned, samples, ratio=0.5, criterion="first", refit=refits):
            pass
    with torch.no_grad():
        wanted = network(images)
        assert (fitted.eval()(images) - wanted).norm() < 0.7 * (plain.eval()(images) - wanted).norm()


def test_repair_without_a_replacement_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *WORDS, "scoring.repair=true"]) == 2
    assert "prune.replace=linear" in capsys.readouterr().err


def test_an_exported_network_has_its_maps(healed: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    _, folder = run_of(healed)
    assert main(["export", str(folder), "--format", "onnx", "--out", str(tmp_path / "healed.onnx")]) == 0
