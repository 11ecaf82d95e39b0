"""What the results page is measured on, and how much of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from consensus_cli.evaluation.robustness.attacks import Attack

#: blocks removed, of ResNet56's 24 candidates -> ratio
RATIOS = {6: 0.25, 12: 0.5, 15: 0.625, 21: 0.875}
#: at which the controls, the seeds and the other choices of blocks are
CONTROLLED = 15
#: at which something more was tried
TRIED = (12, 15)
#: the published network's normalisation, and how long it was trained
NETWORK = (
    "model.mean=[0.4914,0.4822,0.4465]",
    "model.std=[0.247,0.2435,0.2616]",
    "baseline.epochs=24",
)
PROTOCOL = (
    "experiment=paper/cifar10_resnet56",
    "budget=short",
    "dataset=imagefolder",
    "dataset.name=cifar10jpeg",
    *NETWORK,
)
#: the try that learns from the original trained as much
TAUGHT = "taught"
#: of a run that is done for its accuracy: nothing attacked, cost as briefly as can be
ACCURACY_ALONE = (
    "attacks=none",
    "evaluate.corruptions=[]",
    "evaluate.energy_window_s=0.02",
    "evaluate.energy_repeats=1",
    "evaluate.latency_min_run_s=0.02",
)


@dataclass(frozen=True)
class Plan:
    """The sizes of the measurements.

    Attributes:
        seeds: of the runs with controls.
        random_seeds: of the runs that remove random blocks.
        attacked_images: of the curve over epsilon.
        checked_images: of APGD and Square.
        checked_steps: of APGD, and queries of Square.
        words: further settings of every run.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    random_seeds: tuple[int, ...] = (0, 1, 2)
    attacked_images: int = 1000
    checked_images: int = 100
    checked_steps: tuple[int, int] = (20, 1000)
    words: tuple[str, ...] = ()

    def runs(self) -> Iterator[tuple[str, list[str]]]:
        """Yields every run: its name, and the words that begin it; those that matter most come first."""
        at = f"ratio={RATIOS[CONTROLLED]}"
        others = [ratio for blocks, ratio in RATIOS.items() if blocks != CONTROLLED]
        controls = "controls=[more_training,scratch]"
        yield f"controls-{self.seeds[0]}", self._words(at, controls, f"seed={self.seeds[0]}")
        yield "ratios", self._words(f"ratio=[{','.join(map(str, others))}]")
        yield "uniform", self._words(at, "criterion=uniform")
        for seed in self.random_seeds:
            yield f"random-{seed}", self._words(at, "criterion=random", f"seed={seed}")
        for seed in self.seeds[1:]:
            yield f"controls-{seed}", self._words(at, controls, f"seed={seed}")

    def tries(self, trained: str) -> Iterator[tuple[str, list[str]]]:
        """Yields what might bring the pruned network nearer to the original trained as much: name, and words.

        Args:
            trained: the weights of that original, a teacher.
        """
        more = {
            "healed": ["prune.refit=true"],
            "distilled": ["finetune.distill=0.5"],
            TAUGHT: ["finetune.distill=0.5", f"finetune.teacher={trained}"],
            "longer": ["finetune.final_epochs=40"],
        }
        more["together"] = ["prune.refit=true", *more[TAUGHT], *more["longer"]]
        at = f"ratio=[{','.join(str(RATIOS[blocks]) for blocks in TRIED)}]"
        for name, words in more.items():
            # Their accuracies are compared and nothing else. The plan's own words last: a quick look has fewer epochs.
            yield name, [*PROTOCOL, *ACCURACY_ALONE, at, *words, *self.words]

    def checks(self) -> dict[str, Attack]:
        """Returns the attacks that look for masked gradients; at 1/255 PGD leaves images for others."""
        apgd, queries = self.checked_steps
        steps = {"fgsm": 1, "pgd": 10, "apgd": apgd, "square": queries}
        return {
            f"{name}_eps{eps255}": Attack(name, eps255=eps255, steps=count)
            for eps255 in (1, 8)
            for name, count in steps.items()
        }

    def _words(self, *own: str) -> list[str]:
        return [*PROTOCOL, f"attacks.images={self.attacked_images}", *self.words, *own]


#: a few images and a fraction of an epoch: whether it runs, in minutes
TINY = Plan(
    seeds=(0,),
    random_seeds=(0,),
    attacked_images=4,
    checked_images=4,
    checked_steps=(2, 4),
    words=(
        "metrics.samples_per_class=8",
        "finetune.final_epochs=0.05",
        "finetune.recalibration_images=16",
        "finetune.batch_size=16",
        "baseline.epochs=0.05",
        "prune.step=30",
        "evaluate.corruptions=[contrast]",
        "evaluate.corruption_images=4",
        "evaluate.energy_window_s=0.02",
        "evaluate.energy_repeats=1",
        "evaluate.latency_min_run_s=0.02",
    ),
)
