"""Two networks compared in one call: by a stranger's loader, by names of attacks, and by several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import shared_comparison
from helpers.evaluation_networks import Brightness, Fixed, small_conv_net
from helpers.shift_archives import cifar_c
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from consensus_cli.config.composition import compose_run
from consensus_cli.data.share import Share
from consensus_cli.errors import UserError
from consensus_cli.evaluation import comparison
from consensus_cli.evaluation.comparison import compare
from consensus_cli.evaluation.cost.energy import EnergyMeter
from consensus_cli.evaluation.pair import Pair, part
from consensus_cli.evaluation.robustness import adversarial
from consensus_cli.evaluation.robustness.attacks import ATTACKS, Attack

TESTS = Path(__file__).parents[1]


def loader(split, batch_size=8):
    images, labels = next(split.batches(len(split)))
    return DataLoader(TensorDataset(images, labels), batch_size, shuffle=True)


def test_a_loader_is_compared_as_a_split_is(brightness_split):
    original, pruned = Brightness(), Brightness(threshold=137.5 / 255)
    by_loader, by_split = (
        compare(original, pruned, test, cost=False, attacks=["fgsm"])
        for test in (loader(brightness_split), brightness_split)
    )
    assert by_loader["test_images"] == 20
    assert (by_loader["accuracy_base_pct"], by_loader["accuracy_pruned_pct"]) == (100, 75)
    assert by_loader["accuracy_delta_pp"] == -25
    for column in ("fgsm_base_pct", "fgsm_pruned_pct", "fgsm_eps255", "attacked_images", "mcnemar_p"):
        assert by_loader[column] == by_split[column]


def test_cost_energy_and_corruptions_are_measured_where_asked_for(brightness_split, monkeypatch):
    monkeypatch.setattr(comparison, "LATENCY_S", 0.001)
    monkeypatch.setattr(comparison, "ENERGY_WINDOW_S", 0.001)
    found = compare(
        nn.Sequential(small_conv_net(2)), small_conv_net(2, seed=1), loader(brightness_split), corruptions=["contrast"],
        images=10, energy=EnergyMeter("BRA"),
    )  # fmt: skip
    assert found["macs_base"] == found["macs_pruned"] > 0
    assert min(found["latency_b1_base_ms"], found["latency_b128_pruned_ms"]) > 0
    assert (found["country"], found["corrupted_images"]) == ("BRA", 10)
    assert "own_corruption_contrast_s5_base_pct" in found.columns
    assert not any("epoch" in name or "attack" in name for name in found.columns)
    bare = compare(Brightness(), Brightness(), brightness_split, cost=False)
    assert not any(name.startswith(("macs", "latency", "energy", "own")) for name in bare.columns)


def test_the_table_shows_both_networks_with_units_and_change(brightness_split):
    pruned = Brightness(threshold=137.5 / 255)
    text = str(compare(Brightness(), pruned, brightness_split, cost=False, attacks={"fgsm4": Attack("fgsm", eps255=4)}))
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["accuracy, %"][2:] == ["100", "75", "-25.00", "pp", "[-45.0,", "-5.0]"]
    assert lines["fgsm4, %"][2:6] == ["80", "65", "-15.00", "pp"]
    assert lines["fgsm4, %"][6].startswith("[-")
    assert lines["fgsm4 perturbation, /255"][3:5] == ["4", "4"]
    assert "test_images: 20" in text
    assert "nan" not in str(compare(Brightness(), pruned, brightness_split, cost=False, attacks=["deepfool"]))


def test_networks_are_left_as_they_were(brightness_split):
    original, pruned = Brightness().train(), Brightness().train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    compare(original, pruned, brightness_split, cost=False, attacks=["pgd"])
    assert original.training
    assert original.gain.requires_grad
    assert original.gain.grad is None
    assert torch.equal(torch.get_rng_state(), state)


class Answers(nn.Module):
    """A network that answers a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Brightness()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.network(x)}


def test_logits_are_found_in_what_a_network_answers(brightness_split):
    assert compare(Answers(), Brightness(), brightness_split, cost=False)["disagreement_pct"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attacks": ["pdg"]}, "unknown attack 'pdg'"),
        ({"attacks": "pgd"}, "attacks='pgd' is one text"),
        ({"attacks": ["pgd", Attack("pgd", eps255=2)]}, "two attacks 'pgd'"),
        ({"attacks": ["autoattack"]}, "needs 4 classes, the network has 2"),
        ({"corruptions": ["snow"]}, "unknown corruption 'snow'"),
        ({"pruned": Fixed(torch.zeros(3))}, r"logits of shape \(2, 2\) and \(2, 3\)"),
        (
            {"original": Fixed(torch.zeros(1)), "pruned": Fixed(torch.zeros(1))},
            "labels up to 1, the networks 1 classes",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(arguments, message, brightness_split):
    networks = {"original": Brightness(), "pruned": Brightness()}
    with pytest.raises(UserError, match=message) as caught:
        compare(test=brightness_split, cost=False, **(networks | arguments))
    assert caught.value.hint


def test_defaults_are_those_of_the_command_line():
    config = compose_run(["attacks=full"])
    assert (list(comparison.BATCH_SIZES), comparison.LATENCY_S) == (
        config.evaluate.batch_sizes,
        config.evaluate.latency_min_run_s,
    )
    assert config.evaluate.energy_window_s == comparison.ENERGY_WINDOW_S
    assert config.evaluate.energy_repeats == comparison.ENERGY_REPEATS
    assert compose_run([]).attacks.images == comparison.ATTACKED_IMAGES
    assert config.evaluate.corruption_images == comparison.CORRUPTED_IMAGES
    for name in ATTACKS:
        ours, theirs = comparison._named(name, 0), config.attacks.suite[name]
        assert (ours.norm, ours.eps255) == (theirs.norm, theirs.eps255)
        assert ours.steps in (10, theirs.steps)


@pytest.mark.parametrize("name", ["pgd", "apgd", "square", "cw"])
def test_parts_of_several_processes_are_the_answers_of_one(name, noise_split):
    """Image by image: whether each network is right, before and after, and how far the image was moved."""
    attack = Attack(name, ATTACKS[name].norms[0], eps255=3, steps=5, seed=2)
    split, outcomes = noise_split(45, 4), {}
    for world in (1, 3):
        pair = Pair(small_conv_net(seed=0), small_conv_net(seed=1), split)
        parts = [part(split, 10, Share(rank, world)) for rank in range(world)]
        batches = [batch for mine in parts for batch in adversarial._attacked(pair, name, attack, mine, 10)]
        outcomes[world] = torch.cat(batches, dim=2)
    torch.testing.assert_close(outcomes[3], outcomes[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    archive = cifar_c(tmp_path / "c10", np.arange(6) % 2, np.arange(30) * 8, ("fog", "snow"))
    shared_comparison.main(tmp_path / "one.json", archive)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = [shared_comparison.__file__, str(tmp_path / "two.json"), str(archive)]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    subprocess.run([*launcher, *script], env=os.environ | {"PYTHONPATH": path}, check=True, timeout=300)
    (one,), two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert len(two) == 2
    assert two[0] == two[1] == one
    assert 0 < one["pgd_base_pct"] < one["clean_base_pct"]
