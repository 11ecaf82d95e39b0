"""The adversarial attacks: what each is called, what it may do to an image, and how torchattacks runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from consensus_cli.errors import UserError, packages_told, unknown_name
from consensus_cli.models import ranges

if TYPE_CHECKING:
    from torch import nn

Norm = Literal["Linf", "L2"]


@dataclass
class AttackSettings:
    """An attack and its threat model, as a suite names it: which perturbations of an image in [0, 1] count.

    Attributes:
        name: key in `ATTACKS`.
        norm: how the size of a perturbation is measured, `Linf` or `L2`.
        eps255: largest perturbation allowed, in pixel units of 1/255 (of the whole image for L2).
        steps: iterations, or queries for `square`; of no meaning for `fgsm`.
        restarts: attempts on an image that still stands, each with its own random start.
        step255: size of one step in units of 1/255; None: 2.5 · eps / steps (Madry et al. 2018), and eps for a
            single step.
    """

    name: str
    norm: str = "Linf"
    eps255: float = field(default=8.0, metadata={"range": (0, math.inf)})
    steps: int = field(default=10, metadata={"range": (1, math.inf)})
    restarts: int = field(default=1, metadata={"range": (1, math.inf)})
    step255: float | None = field(default=None, metadata={"above": 0})


@dataclass
class Attack(AttackSettings):
    """An attack with the seed of all its random choices. Raises UserError for a value out of range."""

    seed: int = 0

    def __post_init__(self) -> None:
        ranges.check(self)

    @property
    def eps(self) -> float:
        """Largest perturbation of an image in [0, 1]."""
        return self.eps255 / 255

    @property
    def step(self) -> float:
        """Size of one step on an image in [0, 1]."""
        if self.step255 is not None:
            return self.step255 / 255
        return min(2.5 / self.steps, 1.0) * self.eps


@dataclass(frozen=True)
class Method:
    """What an attack can do.

    Attributes:
        norms: norms it can work in.
        random: whether it draws random numbers, so that restarts make sense.
        minimal: whether it looks for the smallest perturbation instead of staying inside the ball; what it finds
            outside the ball does not count.
        min_classes: fewest classes it works with.
        summary: one line for the list of attacks.
        gradients: whether it follows gradients of the network; None for a mixture of both.
    """

    norms: tuple[Norm, ...]
    random: bool
    summary: str
    minimal: bool = False
    min_classes: int = 2
    gradients: bool | None = True


def build(model: nn.Module, attack: Attack, classes: int) -> Any:
    """Returns the torchattacks attack that runs `attack` on a network of so many classes."""
    with packages_told():
        import torchattacks

        from consensus_cli.evaluation.robustness.carlini_wagner import CarliniWagner
        from consensus_cli.evaluation.robustness.deepfool import DeepFool

    moving = {"eps": attack.eps, "alpha": attack.step, "steps": attack.steps}
    seeded = {"norm": attack.norm, "eps": attack.eps, "seed": attack.seed}
    targeted = seeded | {"steps": attack.steps, "n_classes": classes}
    pgd = torchattacks.PGD if attack.norm == "Linf" else torchattacks.PGDL2
    makers: dict[str, Callable[[], Any]] = {
        "fgsm": lambda: torchattacks.FGSM(model, eps=attack.eps),
        "pgd": lambda: pgd(model, random_start=True, **moving),
        "mifgsm": lambda: torchattacks.MIFGSM(model, **moving),
        "sinifgsm": lambda: torchattacks.SINIFGSM(model, **moving),
        "apgd": lambda: torchattacks.APGD(model, steps=attack.steps, loss="ce", **seeded),
        "square": lambda: torchattacks.Square(model, n_queries=attack.steps, **seeded),
        "deepfool": lambda: DeepFool(model, steps=attack.steps),
        "cw": lambda: CarliniWagner(model, c=1, steps=attack.steps, lr=0.01),
        # The standard version (Croce & Hein 2020): torchattacks' own runs 10 iterations where the paper runs 100.
        "autoattack": lambda: torchattacks.MultiAttack(
            [
                torchattacks.APGD(model, steps=attack.steps, loss="ce", **seeded),
                torchattacks.APGDT(model, **targeted),
                torchattacks.FAB(model, multi_targeted=True, **targeted),
                torchattacks.Square(model, n_queries=50 * attack.steps, **seeded),
            ]
        ),
    }
    return makers[attack.name]()


_BOTH: tuple[Norm, ...] = ("Linf", "L2")

ATTACKS: dict[str, Method] = {
    "fgsm": Method(("Linf",), False, "one signed gradient step (Goodfellow et al. 2015)"),
    "pgd": Method(_BOTH, True, "projected gradient descent from a random start (Madry et al. 2018)"),
    "mifgsm": Method(("Linf",), False, "gradient steps with momentum (Dong et al. 2018)"),
    "sinifgsm": Method(("Linf",), False, "Nesterov steps over scaled copies (Lin et al. 2020)"),
    "apgd": Method(_BOTH, True, "PGD with an adaptive step, cross-entropy (Croce & Hein 2020)"),
    "square": Method(_BOTH, True, "random search without gradients (Andriushchenko et al. 2020)", gradients=False),
    "deepfool": Method(("L2",), False, "nearest linearised boundary (Moosavi-Dezfooli et al. 2016)", True),
    "cw": Method(("L2",), False, "smallest perturbation by optimisation (Carlini & Wagner 2017)", True),
    "autoattack": Method(
        _BOTH, True, "APGD-CE, APGD-T, FAB-T and Square in turn (Croce & Hein 2020)", min_classes=4, gradients=None
    ),
}


def check_attacks(attacks: Iterable[AttackSettings], classes: int | None = None) -> None:
    """Checks every attack's settings before anything is computed.

    Args:
        attacks: the attacks.
        classes: how many logits the networks have; None where that is not known yet.

    Raises:
        UserError: for an unknown attack, a norm it does not have, restarts without randomness, or fewer classes than
            an attack needs.
    """
    for attack in attacks:
        if attack.name not in ATTACKS:
            raise unknown_name("attack", attack.name, ATTACKS)
        method = ATTACKS[attack.name]
        if attack.norm not in method.norms:
            raise UserError(
                f"attack '{attack.name}' has no norm '{attack.norm}'", f"use norm {' or '.join(method.norms)}"
            )
        if attack.restarts > 1 and not method.random:
            raise UserError(
                f"attack '{attack.name}' starts the same way every time, {attack.restarts} restarts change nothing",
                "use restarts=1, or an attack with a random start such as pgd",
            )
        if classes is not None and classes < method.min_classes:
            raise UserError(
                f"attack '{attack.name}' needs {method.min_classes} classes, the network has {classes}",
                "use apgd and square instead" if classes > 1 else "switch the attacks off: attacks=none",
            )
