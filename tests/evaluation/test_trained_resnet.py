"""The measures on a ResNet56 trained on real images; needs the folder `shared` beside the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.evaluation_networks import Fixed
from safetensors.torch import load_file
from torch import Tensor, nn

from consensus_cli.data.memory import ImageTensors
from consensus_cli.evaluation.accuracy import accuracy_pct, calibration_error_pct, predict
from consensus_cli.evaluation.pair import Pair
from consensus_cli.evaluation.robustness.adversarial import attack_accuracy
from consensus_cli.evaluation.robustness.attacks import Attack
from consensus_cli.evaluation.robustness.corruption import corruption_accuracy
from consensus_cli.models.classifier import Classifier, Normalize
from consensus_cli.models.resnet import resnet

SHARED = Path(__file__).resolve().parents[3] / "shared"
WEIGHTS = SHARED / "data" / "resnet56_cifar10jpeg.safetensors"
IMAGES = SHARED / "reference" / "cifar10_subset.npz"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (WEIGHTS.exists() and IMAGES.exists()), reason="the folder shared is not there"),
]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    network = resnet(56)
    network.load_state_dict(load_file(WEIGHTS))
    return Classifier(Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)), network).eval()


@pytest.fixture(scope="module")
def split() -> ImageTensors:
    with np.load(IMAGES) as archive:
        return ImageTensors(
            torch.from_numpy(archive["x_test"]).permute(0, 3, 1, 2), torch.from_numpy(archive["y_test"]).long()
        )


def fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
    return (x + eps * gradient.sign()).clamp(0, 1).detach()


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    adversarial = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(20):
        adversarial.requires_grad_()
        loss = nn.functional.cross_entropy(model(adversarial), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        adversarial = (adversarial.detach() + eps / 8 * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return adversarial


def test_accuracy_and_calibration_are_those_of_a_trained_network(model, split):
    predictions = predict(model, split, "cpu")
    assert 75 < accuracy_pct(predictions) < 92
    assert 0 < calibration_error_pct(predictions) < 20


@pytest.mark.parametrize("eps255", [2, 8])
def test_fgsm_and_pgd_agree_with_independent_lines(model, split, eps255):
    images = 200
    attacks = {"fgsm": Attack("fgsm", eps255=eps255), "pgd": Attack("pgd", eps255=eps255, steps=20)}
    subset = split.subset(torch.arange(images))
    constant = Fixed(torch.arange(10.0))  # a second network that costs nothing to attack
    found = attack_accuracy(Pair(model, constant, subset), attacks, images, batch_size=images)
    ((x, y),) = subset.batches(images)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    x, y = x[right].contiguous(), y[right]
    torch.manual_seed(0)  # the attack's own seed: the random starts are the same
    for name, adversarial in (("fgsm", fgsm(model, x, y, eps255 / 255)), ("pgd", pgd(model, x, y, eps255 / 255))):
        with torch.no_grad():
            robust_pct = 100 * (model(adversarial).argmax(1) == y).sum().item() / images
        assert found[name]["base_pct"] == pytest.approx(robust_pct, abs=0.5)
    assert found["pgd"]["base_pct"] <= found["fgsm"]["base_pct"] < found["fgsm"]["clean_base_pct"]


def test_attacks_rank_as_they_must(model, split):
    attacks = {
        "pgd": Attack("pgd", eps255=2),
        "autoattack": Attack("autoattack", eps255=2, steps=5),
        "pgd_eps0": Attack("pgd", eps255=0, steps=2),
    }
    constant = Fixed(torch.arange(10.0))
    subset = split.subset(torch.arange(24))
    found = attack_accuracy(Pair(model, constant, subset), attacks, 24)
    weaker, strongest, none = found.values()
    assert strongest["base_pct"] <= weaker["base_pct"] < weaker["clean_base_pct"]
    assert none["base_pct"] == none["clean_base_pct"]


def test_corruptions_cost_more_with_severity(model, split):
    names = ["gaussian_noise", "defocus_blur", "contrast", "jpeg_compression"]
    pair = Pair(model, model, split.subset(torch.arange(300)))
    rows = corruption_accuracy(pair, names, severities=[1, 5])
    for name in names:
        assert rows[name, 5][0] < rows[name, 1][0]
