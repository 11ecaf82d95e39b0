from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torchattacks
from helpers.evaluation_networks import Brightness, Fixed, small_conv_net
from torch import Tensor, nn

from consensus_cli.data.memory import ImageTensors
from consensus_cli.errors import UserError
from consensus_cli.evaluation.pair import Pair
from consensus_cli.evaluation.robustness.adversarial import (
    adversarial_examples,
    attack_accuracy,
    attack_columns,
    check_perturbation,
    check_sanity,
    perturbation_size,
)
from consensus_cli.evaluation.robustness.attacks import ATTACKS, Attack
from consensus_cli.evaluation.robustness.deepfool import DeepFool

#: Margins of the grey images in units of 1/255: |level − 127.5| = 0.5, 2.5, …, 19.5, the same on both sides.
MARGINS255 = [abs(level - 127.5) for level in range(108, 148, 2)]
FAST_STEPS = {"square": 60, "cw": 200, "autoattack": 5, "deepfool": 20}


def fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
    return (x + eps * gradient.sign()).clamp(0, 1).detach()


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    adversarial = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        adversarial.requires_grad_()
        loss = nn.functional.cross_entropy(model(adversarial), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        adversarial = adversarial.detach() + 2.5 * eps / steps * gradient.sign()
        adversarial = adversarial.clamp(x - eps, x + eps).clamp(0, 1)
    return adversarial


def trained_conv_net() -> tuple[nn.Module, ImageTensors]:
    """A small network that tells four noisy stripe patterns apart, and 200 such images."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(200) % 4
    patterns = (torch.rand(4, 3, 8, 8, generator=generator) > 0.5).float()
    pixels = 128 + 24 * (patterns[labels] - 0.5) + 40 * torch.randn(200, 3, 8, 8, generator=generator)
    split = ImageTensors(pixels.clamp(0, 255).to(torch.uint8), labels)
    model = small_conv_net()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    ((images, targets),) = split.batches(200)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, split


@pytest.mark.parametrize("name", ["fgsm", "pgd", "mifgsm", "sinifgsm", "apgd", "autoattack"])
@pytest.mark.parametrize("eps255", [0, 5])
def test_linf_attacks_break_exactly_what_their_ball_reaches(name, eps255, brightness_split):
    """On a linear network the least L∞ perturbation is the margin, so the answer is known image by image."""
    attack = Attack(name, eps255=eps255, steps=FAST_STEPS.get(name, 10))
    model = FourClasses() if name == "autoattack" else Brightness()
    found = attack_accuracy(Pair(model, model, brightness_split), {name: attack}, 20)[name]
    expected = 100 * sum(margin > eps255 for margin in MARGINS255) / 20
    assert found["base_pct"] == found["pruned_pct"] == pytest.approx(expected)
    assert found["clean_base_pct"] == 100
    assert (found["delta_pp"], found["ci95_low"], found["ci95_high"]) == (0, 0, 0)


@pytest.mark.parametrize("name", ["pgd", "apgd", "square", "deepfool", "cw"])
def test_l2_attacks_break_exactly_what_their_ball_reaches(name, brightness_split):
    """The least L2 perturbation of a flat image moves all 192 pixels alike: margin · √192."""
    eps255 = 6 * math.sqrt(192)
    attack = Attack(name, "L2", eps255=eps255, steps=FAST_STEPS.get(name, 10))
    model = Brightness()
    found = attack_accuracy(Pair(model, model, brightness_split), {name: attack}, 20)[name]
    least = 100 * sum(margin > 6 for margin in MARGINS255) / 20
    # Square moves whole patches at random and need not reach the optimum; nothing may do better than it.
    assert least <= found["base_pct"] <= (100 if name == "square" else least)


class FourClasses(Brightness):
    """`Brightness` with two more classes that never win, for attacks that want four."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return torch.cat([logits, logits - 50 - logits.abs()], dim=1)


@pytest.mark.parametrize("name", ["deepfool", "cw"])
def test_minimal_attacks_find_the_least_perturbation(name, brightness_split):
    subset = brightness_split.subset(torch.tensor([7]))  # level 122: margin 5.5
    attack = Attack(name, "L2", eps255=1000, steps=200)
    found = attack_accuracy(Pair(Brightness(), Brightness(), subset), {name: attack}, 1)[name]
    assert found["base_pct"] == 0
    assert found["perturbation_base255"] == pytest.approx(5.5 * math.sqrt(192), rel=0.06)


def test_deepfool_moves_a_batch_as_torchattacks_moves_each_image():
    model, split = trained_conv_net()
    ((images, labels),) = split.subset(torch.arange(40)).batches(40)
    labels = labels.where(torch.arange(40) > 2, (labels + 1) % 4)  # three are wrong already and stay as they are
    for steps in (1, 20):
        expected = torchattacks.DeepFool(model, steps=steps)(images.contiguous(), labels)
        found = DeepFool(model, steps=steps)(images.contiguous(), labels)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert torch.equal(found[:3], images[:3])
        assert not torch.equal(found, images)


class KeptInMemory:
    """Keeps examples by the attack and the first pixel of every image."""

    def __init__(self) -> None:
        self.known: dict[str, Tensor] = {}
        self.written: list[str] = []

    def read(self, attack: Attack, images: Tensor, labels: Tensor) -> Tensor | None:
        return self.known.get(self.key(attack, images))

    def write(self, attack: Attack, images: Tensor, labels: Tensor, examples: Tensor) -> None:
        self.known[self.key(attack, images)] = examples
        self.written.append(attack.name)

    def key(self, attack: Attack, images: Tensor) -> str:
        return f"{attack} {images[:, 0, 0, 0].tolist()}"


def test_the_original_is_attacked_once_for_all_networks_that_are_compared_with_it():
    original, split = trained_conv_net()
    attacks = {name: Attack(name, eps255=6, steps=3) for name in ("fgsm", "pgd")}
    kept, gradients = KeptInMemory(), []
    for seed in (3, 4):
        pair = Pair(original, small_conv_net(seed=seed), split)
        expected = attack_accuracy(pair, attacks, 50, batch_size=20)
        hook = original.register_forward_hook(lambda *_, seed=seed: gradients.append((seed, torch.is_grad_enabled())))
        found = attack_accuracy(replace(pair, examples=kept), attacks, 50, batch_size=20)
        hook.remove()
        for name in attacks:
            assert found[name] == pytest.approx(expected[name], abs=0, nan_ok=True)
        assert found["pgd"]["base_pct"] < found["pgd"]["clean_base_pct"]
    assert kept.written == 3 * ["fgsm"] + 3 * ["pgd"]
    assert (3, True) in gradients
    assert (4, False) in gradients
    assert (4, True) not in gradients


@pytest.mark.parametrize("eps255", [2, 8])
def test_fgsm_and_pgd_agree_with_a_few_independent_lines(eps255):
    model, split = trained_conv_net()
    attacks = {"fgsm": Attack("fgsm", eps255=eps255), "pgd": Attack("pgd", eps255=eps255, steps=20)}
    found = attack_accuracy(Pair(model, model, split), attacks, 200)
    ((images, labels),) = split.batches(200)
    right = model(images).argmax(1) == labels
    images, labels = images[right].contiguous(), labels[right]
    eps = eps255 / 255
    torch.manual_seed(0)  # the attack's own seed: the random starts are the same
    for name, adversarial in (
        ("fgsm", fgsm(model, images, labels, eps)),
        ("pgd", pgd(model, images, labels, eps, 20)),
    ):
        robust = model(adversarial).argmax(1) == labels
        assert found[name]["base_pct"] == pytest.approx(100 * robust.sum().item() / 200, abs=0.5)
    assert 0 < found["pgd"]["base_pct"] < found["pgd"]["clean_base_pct"]
    assert found["pgd"]["base_pct"] <= found["fgsm"]["base_pct"]


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_every_attack_keeps_its_ball_and_leaves_no_trace(name):
    model, split = trained_conv_net()
    model.to(memory_format=torch.channels_last).train()
    model[1].eval()  # frozen batch norm
    modes = [module.training for module in model.modules()]
    ((images, labels),) = split.subset(torch.arange(12)).batches(12)
    attack = Attack(name, ATTACKS[name].norms[0], eps255=6, steps=FAST_STEPS.get(name, 5))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    adversarial = adversarial_examples(model, attack, images, labels)
    assert perturbation_size(adversarial, images, attack).max() <= attack.eps * (1 + 1e-4)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad and (p.grad is None or not p.grad.any()) for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    again = adversarial_examples(model, attack, images, labels)
    torch.testing.assert_close(again, adversarial)


def test_wrongly_classified_images_are_left_alone():
    model, split = trained_conv_net()
    ((images, labels),) = split.batches(200)
    wrong = (labels + 1) % 4
    adversarial = adversarial_examples(model, Attack("pgd"), images, wrong)
    untouched = (adversarial == images).flatten(1).all(1)
    assert torch.equal(untouched, model(images).argmax(1) != wrong)


def test_a_constant_network_is_as_robust_as_it_is_accurate(noise_split):
    model = Fixed(torch.tensor([0.0, 3.0, 1.0, 1.0]))
    attacks = {"fgsm": Attack("fgsm"), "mifgsm": Attack("mifgsm"), "pgd_l2": Attack("pgd", "L2")}
    found = attack_accuracy(Pair(model, model, noise_split(40, 4)), attacks, 40)
    assert [r["base_pct"] for r in found.values()] == [25, 25, 25]
    assert math.isnan(found["fgsm"]["perturbation_base255"])


def test_networks_are_compared_on_the_same_images_with_an_interval_and_transfer(brightness_split):
    """The pruned network's boundary lies 10/255 higher: the images in between are wrong before any attack."""
    base, pruned = Brightness(), Brightness(threshold=137.5 / 255)
    found = attack_accuracy(Pair(base, pruned, brightness_split), {"fgsm": Attack("fgsm", eps255=4)}, 20)
    result = found["fgsm"]
    assert (result["clean_base_pct"], result["clean_pruned_pct"]) == (100, 75)
    # Standing: base with margin > 4 (16 of 20); pruned: levels ≤ 126 (all, at least 11.5 away), and 142, 144, 146.
    assert (result["base_pct"], result["pruned_pct"]) == (80, 65)
    assert result["delta_pp"] == pytest.approx(-15)
    assert result["ci95_low"] < -15 < result["ci95_high"]
    # Made on the base: class 1 moves down by 4, and the pruned network still needs 142 or more.
    assert result["transfer_to_pruned_pct"] == 65
    # Made on the pruned network: class 0 moves up by 4, and 124 and 126 cross the base's boundary.
    assert result["transfer_to_base_pct"] == 90
    assert result["perturbation_base255"] == pytest.approx(4, abs=1e-3)


def test_restarts_never_leave_more_standing_and_progress_is_reported():
    model, split = trained_conv_net()
    seen = []
    one, many = (
        attack_accuracy(
            Pair(model, model, split, progress=lambda *step: seen.append(step)),
            {"pgd": Attack("pgd", eps255=3, steps=2, restarts=restarts)},
            60,
            batch_size=25,
        )["pgd"]["base_pct"]
        for restarts in (1, 5)
    )
    assert many <= one
    # Two steps on each of two networks, in each of three batches, and one call when a batch is done.
    reported = [("pgd", done, passes) for done, passes in ((0, 4), (25, 8), (50, 12), (60, 12))]
    for name, done, passes in reported:
        assert (f"attacking: {name}, {passes} passes", done, 60) in seen
    assert [done for _, done, _ in seen[:15]] == [0] * 4 + [25] * 5 + [50] * 5 + [60]


def test_the_seed_decides_the_subset(noise_split):
    model, split = small_conv_net(), noise_split(200, 4)
    accuracy_pct = [
        attack_accuracy(Pair(model, model, split, seed), {"fgsm": Attack("fgsm")}, 40)["fgsm"]["clean_base_pct"]
        for seed in (0, 0, 1, 2, 3)
    ]
    assert accuracy_pct[0] == accuracy_pct[1]
    assert len(set(accuracy_pct)) > 1


def test_autoattack_needs_four_classes(brightness_split):
    with pytest.raises(UserError, match="needs 4 classes, the network has 2"):
        adversarial_examples(Brightness(), Attack("autoattack"), *next(brightness_split.batches(20)))


def test_no_images_are_refused(brightness_split):
    with pytest.raises(UserError, match="0 images to attack"):
        attack_accuracy(Pair(Brightness(), Brightness(), brightness_split), {"fgsm": Attack("fgsm")}, 0)


@pytest.mark.parametrize("bad", [0.2, float("nan"), 1.5, -0.1])
def test_a_perturbation_outside_its_ball_is_a_bug(bad):
    images = torch.full((2, 1, 4, 4), 0.5)
    perturbed = images.clone()
    perturbed[1, 0, 0, 0] = bad
    with pytest.raises(RuntimeError, match="left its threat model"):
        check_perturbation(perturbed, images, Attack("pgd", eps255=8))


PGD = Attack("pgd", eps255=8)
WEAKER, STRONGER, NOTHING = (replace(PGD, eps255=eps255) for eps255 in (4, 16, 0))
RESULT = {"clean_base_pct": 90.0, "clean_pruned_pct": 90.0, "base_pct": 40.0, "pruned_pct": 40.0}


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([(PGD, RESULT | {"base_pct": 100.0, "clean_base_pct": 80.0})], "base network: 100.0 % robust, 80.0 % clean"),
        ([(NOTHING, RESULT | {"base_pct": 90.0, "pruned_pct": 89.0})], "pruned network: 89.0 % robust"),
        ([(PGD, RESULT), (STRONGER, RESULT | {"pruned_pct": 60.0})], "leaves more of the pruned"),
        ([(PGD, RESULT | {"pruned_pct": 60.0}), (WEAKER, RESULT)], "leaves more of the pruned"),
    ],
)
def test_impossible_results_fail_loudly(results, message):
    with pytest.raises(RuntimeError, match=message):
        check_sanity(results, images=100)


def test_possible_results_pass():
    check_sanity([(PGD, RESULT), (STRONGER, RESULT | {"base_pct": 45.0, "pruned_pct": 0.0})], images=100)


def test_attacks_that_differ_in_steps_alone_have_columns_of_their_own(brightness_split):
    attacks = {"pgd": Attack("pgd", steps=1, step255=1), "pgd50": Attack("pgd", steps=50)}
    columns, right = attack_columns(Pair(Brightness(), Brightness(), brightness_split), attacks, 20)
    assert {name: 100 * answers.double().mean().item() for name, answers in right.items()} == {
        f"{name}_{network}": columns[f"{name}_{network}_pct"] for name in attacks for network in ("base", "pruned")
    }
    assert columns["pgd50_base_pct"] < columns["pgd_base_pct"]
    assert columns["pgd50_perturbation_base255"] == pytest.approx(8, abs=1e-3)
