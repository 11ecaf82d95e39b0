"""Whole runs of networks with odd habits: the right numbers, the same ones twice."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import odd_networks
from helpers.authors_network import REFERENCE

from consensus_cli import load_pruned
from consensus_cli.cli.main import main

TRIALS = REFERENCE.parent / "trials"
#: the whole line on odd networks in a few seconds; grey digits spread over three channels
WORDS = (
    "run",
    "--quiet",
    "experiment=smoke",
    "model=custom",
    "model.mean=[0.5,0.5,0.5]",
    "model.std=[0.25,0.25,0.25]",
    "dataset.limit_train=300",
    "dataset.limit_test=100",
    "attacks.images=20",
    "baseline.epochs=2",
    "metrics=fast",
    "finetune=none",
    "ratio=0.5",
    "evaluate.energy_window_s=0.01",
    "evaluate.latency_min_run_s=0.01",
    "evaluate.batch_sizes=[1]",
)


def rows(folder: Path, *words: str) -> pd.DataFrame:
    assert main([*WORDS, f"output_dir={folder}", *words]) == 0
    return pd.read_csv(folder / "results.csv")


def test_a_network_that_keeps_what_it_computes_gives_the_same_numbers_with_a_cached_baseline(tmp_path: Path) -> None:
    """What it computed from fresh weights must not survive the loading of others."""
    trained = rows(tmp_path, "model.target=helpers.odd_networks.Caches").iloc[0]
    both = rows(tmp_path, "model.target=helpers.odd_networks.Caches")
    again = both.iloc[1]
    assert len(list((tmp_path / "baselines").glob("*.safetensors"))) == 1
    for column in ("accuracy_base_pct", "accuracy_pruned_pct", "nll_base_nats", "fgsm_base_pct", "removed_blocks"):
        assert trained[column] == again[column], column
    loaded = load_pruned(both["run_dir"][1])
    images = torch.rand(4, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(images), loaded(images))


@pytest.mark.parametrize(
    ("target", "removed"),
    [
        ("Tuples", r"blocks\.[1-4]\[1of1\];blocks\.[1-4]\[1of1\]"),
        ("Convolutional", r"blocks\.[1-4];blocks\.[1-4]"),
        ("Views", r"blocks\.[1-4];blocks\.[1-4]"),
        ("Lazy", r"blocks\.[1-4];blocks\.[1-4]"),
        ("DataclassAnswer", r"blocks\.[1-4];blocks\.[1-4]"),
        ("Distilled", r"blocks\.[1-4];blocks\.[1-4]"),
        ("Auxiliary", r"blocks\.[1-4];blocks\.[1-4]"),
        ("WithoutHead", r"blocks\.[1-4];blocks\.[1-4]"),
    ],
)
def test_a_pruned_network_is_loaded_as_it_was_measured(tmp_path: Path, target: str, removed: str) -> None:
    row = rows(tmp_path, f"model.target=helpers.odd_networks.{target}").iloc[0]
    assert pd.Series([row["removed_blocks"]]).str.fullmatch(removed).all()
    model = load_pruned(row["run_dir"])
    assert sum(parameter.numel() for parameter in model.parameters()) == row["params_pruned"]
    assert sum(isinstance(module, odd_networks.Block) for module in model.modules()) == 3


def test_blocks_that_cannot_go_lose_their_branches_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("model.target=helpers.odd_networks.SumsLosses", f"output_dir={tmp_path}")
    assert main([*WORDS, *words]) == 2
    said = capsys.readouterr().err
    assert (
        "none of the 5 residual blocks of the network can be removed, e.g. blocks.4 (without it, training fails" in said
    )
    assert "its branch can go by itself: prune.granularity=branch)" in said
    row = rows(tmp_path, words[0], "prune.granularity=branch").iloc[0]
    assert pd.Series([row["removed_blocks"]]).str.fullmatch(r"blocks\.[1-4]\+branch;blocks\.[1-4]\+branch").all()
    model = load_pruned(row["run_dir"])
    assert sum(parameter.numel() for parameter in model.parameters()) == row["params_pruned"]


def test_frozen_networks_are_pruned_without_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(odd_networks.Frozen().state_dict(), tmp_path / "frozen.pt")
    row = rows(tmp_path, "model.target=helpers.odd_networks.Frozen", f"model.weights={tmp_path}/frozen.pt").iloc[0]
    assert row["blocks_removed"] == 2
    assert row["energy_inference_base_kwh"] > 0
    assert pd.isna(row["energy_epoch_base_kwh"])


def test_weights_for_other_classes_are_where_the_training_starts(tmp_path: Path) -> None:
    """With a head that was drawn anew the baseline is trained, and kept apart from one that starts fresh."""
    target = "model.target=helpers.odd_networks.Plain"
    fresh = rows(tmp_path, target).iloc[0]
    torch.manual_seed(1)
    torch.save(odd_networks.ManyOutputs().state_dict(), tmp_path / "many.pt")
    row = rows(tmp_path, target, f"model.weights={tmp_path}/many.pt", "model.reset_head=true").iloc[1]
    assert len(list((tmp_path / "baselines").glob("*.safetensors"))) == 2
    assert row["baseline_s"] > 0
    assert row["nll_base_nats"] != fresh["nll_base_nats"]


@pytest.mark.parametrize(("command", "hint"), [("run", "consensus resume"), ("score", "repeat the command")])
def test_what_the_networks_code_raises_late_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, hint: str
) -> None:
    assert main([command, *WORDS[1:], "model.target=helpers.odd_networks.FewAtOnce", f"output_dir={tmp_path}"]) == 1
    said, mends = capsys.readouterr().err.splitlines()
    assert said.startswith("error: the network's code raised KeyError: 'too many' (odd_networks.py, line")
    assert hint in mends


#: network of the trials -> candidates, or what is said of it
EXPECTED: dict[str, int | str] = {
    "NeedsBigImages": "it takes 3×32×32: give it model.image_size=32",
    "ReadsAttribute": 0,
    "TooFewLogits": "has 5 outputs, the dataset has 10 classes",
    "HookedFeatures": "does not answer as the network does",
    "DropoutAlwaysOn": "differently the second time",
    "OverwritesFirst": 0,
    "TwoStreams": 0,
    "RaisesValueError": "nets.RaisesValueError raised ValueError: depth must be 5, not 7 (nets.py, line",
    "WithoutBlocks": "has no residual blocks",
}


@pytest.mark.slow
@pytest.mark.skipif(not TRIALS.is_dir(), reason="needs shared/trials")
def test_the_networks_of_the_trials(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "path", [str(TRIALS), *sys.path])
    import nets  # type: ignore[import-not-found]

    for name in nets.ALL:
        code = main(["list", "blocks", "model=custom", f"model.target=nets.{name}", *WORDS[4:6]])
        printed, expected = capsys.readouterr(), EXPECTED.get(name, 4)
        if isinstance(expected, int):
            found = re.search(rf"\b{expected} of \d+ can be removed", printed.out)
            assert (code, found is not None) == (0, True), name
        else:
            assert (code, expected in printed.err) == (2, True), (name, printed.err)
