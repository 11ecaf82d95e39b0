"""What the study compares, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass

from consensus_cli.scoring import metrics

#: the paper's eight, which one pass over the images serves
METRICS = metrics.PAPER

#: criterion -> (metrics that vote, aggregation); what `conf/metrics` and `criterion.aggregation` offer of the eight
VOTES: dict[str, tuple[tuple[str, ...], str]] = {
    "consensus": (METRICS, "rank_sum"),
    "family_rank_sum": (METRICS, "family_rank_sum"),
    "median_rank": (METRICS, "median_rank"),
    "kemeny": (METRICS, "kemeny"),
    "metrics=fast": (("cka", "linear_alpha1", "permutation", "wasserstein"), "rank_sum"),
    "metrics=families": (("cka", "linear_alpha0", "permutation", "gaussian_alpha1", "wasserstein"), "rank_sum"),
    "metrics=scale_free": (("cka", "linear_alpha0", "linear_alpha1", "permutation"), "rank_sum"),
    **{name: ((name,), "rank_sum") for name in METRICS},
}
#: criteria without representations
BASELINES = ("random", "weight_norm", "first", "last")
CRITERIA = (*VOTES, *BASELINES)
#: those whose networks are also attacked, corrupted and timed
MAIN = ("consensus", "family_rank_sum", "cka", "random", "first")
#: those that also rank anew after every removal
STEPWISE = ("consensus", "cka")


@dataclass(frozen=True)
class Plan:
    """The sizes of the study.

    Attributes:
        draws: samples of training images; draw i is what `seed=i` draws.
        random_draws: random orders.
        samples_per_class: training images per class that the metrics see, ascending; a draw's smaller samples are
            part of its larger ones.
        decisive_samples_per_class: the one of them that criteria decide with.
        ratios: shares of the candidate blocks that go.
        min_blocks_per_stage: blocks that every stage keeps.
        recalibration_images: training images that batch norm is measured on after a removal.
        tuning_updates: updates of the short fine-tuning.
        healing_draws: samples of training images that maps are fitted on.
        healing_images: images in each; of the first draw, other numbers of them as well.
        selection_images: test images that the oracle chooses with; all others are reported on.
    """

    draws: int = 5
    random_draws: int = 10
    samples_per_class: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    decisive_samples_per_class: int = 64
    ratios: tuple[float, ...] = (0.25, 0.5, 0.625, 0.875)
    min_blocks_per_stage: int = 2
    recalibration_images: int = 2048
    tuning_updates: int = 20
    healing_draws: int = 5
    healing_images: tuple[int, ...] = (1024, 256, 4096)
    selection_images: int = 2500
