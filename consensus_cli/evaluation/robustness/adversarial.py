"""Accuracy of the original and of the pruned network under attack, by one protocol for both.

Both networks see the same stratified images in [0, 1], in eval mode, with gradients through the normalisation. An
image that a network already gets wrong is not attacked again. Every perturbation is checked to lie in its ball and
in [0, 1], and what each network's examples do to the other is recorded (transfer). Several processes attack whole
batches each; an attack begins every batch with the same random numbers, so that the answers are those of one process.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from consensus_cli.data.split import Split
from consensus_cli.errors import UserError
from consensus_cli.evaluation.pair import Columns, Pair, gather, part
from consensus_cli.evaluation.robustness.attacks import ATTACKS, Attack, build, check_attacks
from consensus_cli.evaluation.statistics import paired_change
from consensus_cli.models.modes import evaluating
from consensus_cli.pruning.silencing import randomness_kept

_TOLERANCE = 1e-5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attacked:
    """What an attack did to both networks.

    Attributes:
        columns: as of `attack_accuracy`.
        right: whether `base` and `pruned` are right about their own example of each image, (2, n) bool.
    """

    columns: dict[str, float]
    right: Tensor


def attack_columns(pair: Pair, attacks: Mapping[str, Attack], images: int) -> tuple[Columns, dict[str, Tensor]]:
    """Measures `attack_accuracy` as columns.

    Returns:
        What it measures, by the names of the attacks, and how long all of it took; and of `NAME_base` and `NAME_pruned`
        whether the network is right about each attacked image, (n,) bool.
    """
    if not attacks:
        return {}, {}
    start_s = time.perf_counter()
    results = attack_both(pair, attacks, images)
    columns: Columns = {"attacked_images": min(images, len(pair.test)), "attacks_s": time.perf_counter() - start_s}
    right: dict[str, Tensor] = {}
    for name, result in results.items():
        columns |= {end if end.startswith("clean") else f"{name}_{end}": value for end, value in result.columns.items()}
        right |= {f"{name}_{network}": values for network, values in zip(pair.networks, result.right, strict=True)}
    return columns, right


def attack_accuracy(
    pair: Pair, attacks: Mapping[str, Attack], images: int, batch_size: int = 128
) -> dict[str, dict[str, float]]:
    """Attacks both networks on the same stratified test images.

    Args:
        pair: the networks; progress is reported after each batch, and after each forward pass of an attack.
        attacks: what to run, by the names that the results are to have.
        images: how many test images are attacked; all if there are fewer.
        batch_size: images attacked at once.

    Returns:
        Of each attack, by ends of columns: `eps255`; accuracy under attack in percent, `base_pct` and `pruned_pct`; its
        change `delta_pp` and the 95 % interval `ci95_low`, `ci95_high` (paired bootstrap over images); accuracy on the
        examples made against the other network, `transfer_to_base_pct` and `transfer_to_pruned_pct`; the median size of
        the perturbations that succeeded, in the attack's norm and in units of 1/255, `perturbation_base255` and
        `perturbation_pruned255`, NaN where there is none; accuracy without attack, `clean_base_pct` and
        `clean_pruned_pct`.

    Raises:
        UserError: for an attack that cannot be run so, or no images to attack.
        RuntimeError: if an attack breaks its own threat model or a sanity check fails: a bug, not a finding.
    """
    return {name: result.columns for name, result in attack_both(pair, attacks, images, batch_size).items()}


def attack_both(pair: Pair, attacks: Mapping[str, Attack], images: int, batch_size: int = 128) -> dict[str, Attacked]:
    """Does what `attack_accuracy` does, and tells of each image as well which network stood."""
    check_attacks(attacks.values())
    if images < 1:
        raise UserError(f"{images} images to attack", "attack at least 1 image, or switch the attacks off")
    mine = part(pair.sample(images), batch_size, pair.share)
    results: dict[str, Attacked] = {}
    for name, attack in attacks.items():
        started_s = time.perf_counter()
        outcomes = torch.cat(gather(pair.share, partial(_attacked, pair, name, attack, mine, batch_size)), dim=2)
        results[name] = Attacked(_summary(attack, outcomes, pair.seed), outcomes[1].bool())
        known = [(attacks[other], result.columns) for other, result in results.items()]
        check_sanity(known, images=outcomes.shape[2])
        _log.info("%s on %d images: %.1f s", attack, outcomes.shape[2], time.perf_counter() - started_s)
    return results


def adversarial_examples(
    model: nn.Module, attack: Attack, images: Tensor, labels: Tensor, on_pass: Callable[[], None] = lambda: None
) -> Tensor:
    """Returns the attack's image for every image, or the image itself where the attack finds none.

    The attack leaves no trace in the network's modes, gradients or the global random state. Images that the network
    gets wrong are left alone.

    Args:
        model: network that maps images in [0, 1] to logits.
        attack: the attack.
        images: (b, c, h, w) in [0, 1].
        labels: (b,) true classes.
        on_pass: called after each forward pass.

    Returns:
        (b, c, h, w) in [0, 1] and inside the ball around `images`.

    Raises:
        UserError: if the network has fewer classes than the attack needs.
        RuntimeError: if a perturbation leaves the ball or [0, 1].
    """
    found = images.clone()
    with evaluating(model), _frozen_parameters(model), randomness_kept():
        for restart in range(attack.restarts):
            logits = model(found)
            check_attacks([attack], logits.shape[1])
            standing = logits.argmax(1) == labels
            if not standing.any():
                break
            attempt = replace(attack, seed=attack.seed + restart)
            # The only sign of life of an attack that takes minutes.
            with model.register_forward_hook(lambda *_: on_pass()):
                perturbed = _run(model, attempt, images[standing], labels[standing], logits.shape[1])
            check_perturbation(perturbed, images[standing], attack)
            found[standing] = perturbed
    return found


def check_perturbation(perturbed: Tensor, images: Tensor, attack: Attack) -> None:
    """Checks that a perturbation obeys its threat model, up to rounding.

    Raises:
        RuntimeError: if a pixel is not a number or outside [0, 1], or an image outside its ball.
    """
    inside = bool(perturbed.isfinite().all()) and perturbed.min() >= 0 and perturbed.max() <= 1
    largest = perturbation_size(perturbed, images, attack).max().item()
    if not inside or largest > attack.eps * (1 + _TOLERANCE) + _TOLERANCE:
        raise RuntimeError(
            f"{attack.name} left its threat model: {attack.norm} perturbation {255 * largest:.4f}/255 of at most "
            f"{attack.eps255:g}/255, pixels {'inside' if inside else 'outside'} [0, 1]"
        )


def check_sanity(results: Sequence[tuple[Attack, Mapping[str, float]]], images: int) -> None:
    """Checks what must hold for any attacks that work, of what `attack_accuracy` measured on so many images.

    Accuracy under attack does not exceed clean accuracy, epsilon 0 changes nothing, and the same attack with a
    larger epsilon does not leave more images standing. The first and the last may fail by noise: up to 1.96
    standard errors of a share.

    Raises:
        RuntimeError: naming the attack and what does not hold.
    """
    noise_pp = 196 * math.sqrt(0.25 / images)
    for attack, result in results:
        for network in ("base", "pruned"):
            robust, clean = result[f"{network}_pct"], result[f"clean_{network}_pct"]
            if robust > clean + noise_pp or (attack.eps255 == 0 and robust != clean):
                raise RuntimeError(f"{attack} of the {network} network: {robust} % robust, {clean} % clean")
            for weaker, others in results:
                if _weaker(weaker, attack) and robust > others[f"{network}_pct"] + noise_pp:
                    raise RuntimeError(f"{attack} leaves more of the {network} network than {weaker}")


def perturbation_size(perturbed: Tensor, images: Tensor, attack: Attack) -> Tensor:
    """Returns the size of each perturbation in the attack's norm, (b,), for images in [0, 1]."""
    order = math.inf if attack.norm == "Linf" else 2
    return torch.linalg.vector_norm((perturbed - images).flatten(1), order, dim=1)


def _attacked(pair: Pair, name: str, attack: Attack, split: Split, batch_size: int) -> list[Tensor]:
    """Attacks both networks batch by batch, each (4, 2, b) on the CPU.

    Of each of the two networks: whether it is right about the clean image, about its own example and about the other
    network's, and the size of its perturbation in units of 1/255, NaN where that did not succeed.
    """
    outcomes, done, passes = [], 0, 0

    def count_pass() -> None:
        nonlocal passes
        passes += 1
        report()

    def report() -> None:
        pair.report(f"attacking: {name}, {passes} passes", done, len(split))

    networks = list(pair.networks.values())
    for images, labels in split.batches(batch_size, pair.device):
        known = None if pair.examples is None else pair.examples.read(attack, images, labels)
        if known is None:
            known = adversarial_examples(pair.original, attack, images, labels, count_pass)
            if pair.examples is not None:
                pair.examples.write(attack, images, labels, known)
        examples = [known, adversarial_examples(pair.pruned, attack, images, labels, count_pass)]
        with pair.evaluating():
            clean, robust, transfer = (
                torch.stack([model(x).argmax(1) == labels for model, x in zip(networks, shown, strict=True)])
                for shown in ((images, images), examples, reversed(examples))
            )
        sizes = torch.stack([255 * perturbation_size(example, images, attack) for example in examples])
        sizes = sizes.where(clean & ~robust, torch.nan)
        outcomes.append(torch.stack([clean, robust, transfer, sizes]).cpu())
        done += len(labels)
        report()
    return outcomes


def _run(model: nn.Module, attack: Attack, images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Runs torchattacks on images that the network gets right, and keeps what obeys the threat model."""
    method = ATTACKS[attack.name]
    torch.manual_seed(attack.seed)
    with torch.enable_grad(), model.register_forward_pre_hook(lambda _, args: _RowMajorGradient.apply(*args)):
        perturbed = build(model, attack, classes)(images.contiguous(), labels).detach()
    # A gradient that is exactly zero (a saturated softmax) becomes 0/0 in some attacks: nothing was found there.
    usable = perturbed.isfinite().flatten(1).all(1)
    perturbed = perturbed.where(usable[:, None, None, None], images)
    if method.minimal:
        usable = perturbation_size(perturbed, images, attack) <= attack.eps
        perturbed = perturbed.where(usable[:, None, None, None], images)
    return perturbed


def _summary(attack: Attack, outcomes: Tensor, seed: int) -> dict[str, float]:
    """Sums up what `_attacked` returns, (4, 2, n)."""
    clean, robust, transfer = (100 * outcomes[:3].double().mean(2)).tolist()
    sizes = outcomes[3].nanmedian(1).values.tolist()
    change = paired_change(outcomes[1, 0], outcomes[1, 1], seed)
    summary = {"eps255": attack.eps255, "base_pct": robust[0], "pruned_pct": robust[1]}
    summary |= {"delta_pp": change.delta_pp, "ci95_low": change.ci95_low_pp, "ci95_high": change.ci95_high_pp}
    summary |= {"transfer_to_base_pct": transfer[0], "transfer_to_pruned_pct": transfer[1]}
    summary |= {"perturbation_base255": sizes[0], "perturbation_pruned255": sizes[1]}
    return summary | {"clean_base_pct": clean[0], "clean_pruned_pct": clean[1]}


def _weaker(weaker: Attack, attack: Attack) -> bool:
    """Whether two attacks differ in nothing but a smaller epsilon; of a single step a longer one is no stronger."""
    return attack.name != "fgsm" and weaker.eps255 < attack.eps255 and replace(weaker, eps255=attack.eps255) == attack


class _RowMajorGradient(torch.autograd.Function):
    """Gives gradients in the default memory format: some attacks flatten them with `view`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous()


@contextmanager
def _frozen_parameters(model: nn.Module) -> Iterator[None]:
    """Switches parameter gradients off: attacks need the gradient of the image only, and some leave `.grad` behind."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
