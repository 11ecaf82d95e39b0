"""Accuracy of a baseline and a pruned network under attack, by one protocol for both.

Both networks see the same stratified images in [0, 1], in eval mode, with gradients through the normalisation. An
image that a network already gets wrong is not attacked again. Every perturbation is checked to lie in its ball and
in [0, 1], and what each network's examples do to the other is recorded (transfer).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from consensus_cli.data.sampling import stratified_subset
from consensus_cli.data.split import Split
from consensus_cli.errors import UserError
from consensus_cli.evaluation.mode import Progress, evaluation_mode, frozen_parameters
from consensus_cli.evaluation.robustness.attacked import AttackedNetwork, AttackProgress
from consensus_cli.evaluation.robustness.attacks import ATTACKS, Attack, check_attacks
from consensus_cli.evaluation.statistics import paired_change

_TOLERANCE = 1e-5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RobustAccuracy:
    """What one attack did to both networks, on the same images. All `_pct` are shares of `attacked_images`.

    Attributes:
        attack: the attack and its threat model.
        attacked_images: images in the subset.
        clean_base_pct: accuracy of the baseline on the subset without attack.
        clean_pruned_pct: the same of the pruned network.
        base_pct: accuracy of the baseline under attack.
        pruned_pct: accuracy of the pruned network under attack.
        delta_pp: pruned minus base, in percentage points.
        ci95_low_pp: lower end of the change's 95 % interval (paired bootstrap over images).
        ci95_high_pp: its upper end.
        transfer_to_pruned_pct: accuracy of the pruned network on the examples made against the baseline.
        transfer_to_base_pct: accuracy of the baseline on the examples made against the pruned network.
        perturbation_base255: median size of the successful perturbations of the baseline, in the attack's norm and
            in units of 1/255; NaN where none succeeded.
        perturbation_pruned255: the same of the pruned network.
    """

    attack: Attack
    attacked_images: int
    clean_base_pct: float
    clean_pruned_pct: float
    base_pct: float
    pruned_pct: float
    delta_pp: float
    ci95_low_pp: float
    ci95_high_pp: float
    transfer_to_pruned_pct: float
    transfer_to_base_pct: float
    perturbation_base255: float
    perturbation_pruned255: float


@dataclass(frozen=True)
class _Outcome:
    """Per-image results of both networks on one batch; all (n,)."""

    clean: tuple[Tensor, Tensor]
    robust: tuple[Tensor, Tensor]
    transfer: tuple[Tensor, Tensor]
    size255: tuple[Tensor, Tensor]


def attack_accuracy(
    base: nn.Module,
    pruned: nn.Module,
    split: Split,
    attacks: Mapping[str, Attack],
    *,
    images: int,
    seed: int,
    device: torch.device | str,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> dict[str, RobustAccuracy]:
    """Attacks both networks on the same stratified subset of `split`.

    Args:
        base: the network before pruning, on `device`.
        pruned: the network after pruning, on `device`.
        split: where the images come from.
        attacks: what to run, by the names that the results are to have.
        images: size of the subset; the whole split if it has fewer.
        seed: of the subset and of the bootstrap.
        device: where the networks are.
        batch_size: images attacked at once.
        progress: told after each batch, and during it after each forward pass of an attack.

    Raises:
        UserError: for an attack that cannot be run so, or no images to attack.
        RuntimeError: if an attack breaks its own threat model or a sanity check fails: a bug, not a finding.
    """
    check_attacks(attacks.values())
    if images < 1:
        raise UserError(f"{images} images to attack", "attack at least 1 image, or switch the attacks off")
    subset = split.subset(stratified_subset(split.labels, images, seed))
    results = {}
    for name, attack in attacks.items():
        started_s, outcomes = time.perf_counter(), []
        report = None if progress is None else AttackProgress(progress, name, len(subset))
        for batch, labels in subset.batches(batch_size, device):
            outcomes.append(_attack_batch((base, pruned), attack, batch, labels, report))
            if report is not None:
                report.attacked(len(labels))
        results[name] = _summary(attack, outcomes, seed)
        _log.info("%s on %d images: %.1f s", attack, len(subset), time.perf_counter() - started_s)
    check_sanity(list(results.values()))
    return results


def adversarial_examples(
    model: nn.Module, attack: Attack, images: Tensor, labels: Tensor, on_pass: Callable[[], None] | None = None
) -> Tensor:
    """Returns the attack's image for every image, or the image itself where the attack finds none.

    Args:
        model: network that maps images in [0, 1] to logits.
        attack: the attack; it leaves no trace in the network's modes, gradients or the global random state.
        images: (b, c, h, w) in [0, 1].
        labels: (b,) true classes.
        on_pass: called after each forward pass.

    Returns:
        (b, c, h, w) in [0, 1] and inside the ball around `images`. Images the network gets wrong are left alone.

    Raises:
        UserError: if the network has fewer classes than the attack needs.
        RuntimeError: if a perturbation leaves the ball or [0, 1].
    """
    found = images.clone()
    with evaluation_mode(model), frozen_parameters(model), _own_random_state(images.device):
        for restart in range(attack.restarts):
            logits = _logits(model, found)
            check_attacks([attack], logits.shape[1])
            standing = logits.argmax(1) == labels
            if not standing.any():
                break
            attempt = replace(attack, seed=attack.seed + restart)
            attacked = AttackedNetwork(model, on_pass).eval()
            perturbed = _run(attacked, attempt, images[standing], labels[standing], logits.shape[1])
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


def check_sanity(results: Sequence[RobustAccuracy]) -> None:
    """Checks what must hold for any attack that works.

    Accuracy under attack does not exceed clean accuracy, epsilon 0 changes nothing, and the same attack with a
    larger epsilon does not leave more images standing. The first and the last may fail by noise: up to 1.96
    standard errors of a share.

    Raises:
        RuntimeError: naming the attack and what does not hold.
    """
    for result in results:
        noise_pp = 196 * math.sqrt(0.25 / result.attacked_images)
        for network in ("base", "pruned"):
            robust, clean = getattr(result, f"{network}_pct"), getattr(result, f"clean_{network}_pct")
            if robust > clean + noise_pp or (result.attack.eps255 == 0 and robust != clean):
                raise RuntimeError(f"{result.attack} of the {network} network: {robust} % robust, {clean} % clean")
            for weaker in results:
                if _weaker(weaker.attack, result.attack) and robust > getattr(weaker, f"{network}_pct") + noise_pp:
                    raise RuntimeError(f"{result.attack} leaves more of the {network} network than {weaker.attack}")


def perturbation_size(perturbed: Tensor, images: Tensor, attack: Attack) -> Tensor:
    """Returns the size of each perturbation in the attack's norm, (b,), for images in [0, 1]."""
    order = math.inf if attack.norm == "Linf" else 2
    return torch.linalg.vector_norm((perturbed - images).flatten(1), order, dim=1)


def _attack_batch(
    networks: tuple[nn.Module, nn.Module], attack: Attack, images: Tensor, labels: Tensor, report: AttackProgress | None
) -> _Outcome:
    on_pass = None if report is None else report.passed
    examples = [adversarial_examples(model, attack, images, labels, on_pass) for model in networks]
    with evaluation_mode(*networks):
        clean = [_logits(model, images).argmax(1) == labels for model in networks]
        robust = [_logits(m, x).argmax(1) == labels for m, x in zip(networks, examples, strict=True)]
        transfer = [_logits(m, x).argmax(1) == labels for m, x in zip(networks, reversed(examples), strict=True)]
    sizes = []
    for example, was_right, is_right in zip(examples, clean, robust, strict=True):
        size = 255 * perturbation_size(example, images, attack)
        sizes.append(size.where(was_right & ~is_right, torch.nan))
    return _Outcome(clean=_cpu(clean), robust=_cpu(robust), transfer=_cpu(transfer), size255=_cpu(sizes))


def _run(model: AttackedNetwork, attack: Attack, images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Runs torchattacks on images that the network gets right, and keeps what obeys the threat model."""
    method = ATTACKS[attack.name]
    torch.manual_seed(attack.seed)
    with torch.enable_grad():
        perturbed = method.build(model, attack, classes)(images.contiguous(), labels).detach()
    # A gradient that is exactly zero (a saturated softmax) becomes 0/0 in some attacks: nothing was found there.
    usable = perturbed.isfinite().flatten(1).all(1)
    perturbed = perturbed.where(usable[:, None, None, None], images)
    if method.minimal:
        usable = perturbation_size(perturbed, images, attack) <= attack.eps
        perturbed = perturbed.where(usable[:, None, None, None], images)
    return perturbed


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


def _summary(attack: Attack, outcomes: Sequence[_Outcome], seed: int) -> RobustAccuracy:
    clean, robust, transfer, sizes = (
        [torch.cat([getattr(o, field)[network] for o in outcomes]) for network in (0, 1)]
        for field in ("clean", "robust", "transfer", "size255")
    )
    change = paired_change(robust[0], robust[1], seed)
    return RobustAccuracy(
        attack=attack,
        attacked_images=len(clean[0]),
        clean_base_pct=_share_pct(clean[0]),
        clean_pruned_pct=_share_pct(clean[1]),
        base_pct=_share_pct(robust[0]),
        pruned_pct=_share_pct(robust[1]),
        delta_pp=change.delta_pp,
        ci95_low_pp=change.ci95_low_pp,
        ci95_high_pp=change.ci95_high_pp,
        transfer_to_pruned_pct=_share_pct(transfer[1]),
        transfer_to_base_pct=_share_pct(transfer[0]),
        perturbation_base255=sizes[0].nanmedian().item(),
        perturbation_pruned255=sizes[1].nanmedian().item(),
    )


def _weaker(weaker: Attack, attack: Attack) -> bool:
    """Whether two attacks differ in nothing but a smaller epsilon."""
    return weaker.eps255 < attack.eps255 and replace(weaker, eps255=attack.eps255) == attack


def _cpu(pair: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return pair[0].cpu(), pair[1].cpu()


def _share_pct(right: Tensor) -> float:
    return 100 * right.double().mean().item()


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """Restores torch's global random state, which torchattacks draws from and reseeds."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
