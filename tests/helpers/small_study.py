"""The sizes of the study in tests."""

from study.plan import Plan

SMALL = Plan(
    draws=2,
    random_draws=2,
    samples_per_class=(8, 16),
    decisive_samples_per_class=8,
    ratios=(0.34, 0.5),
    min_blocks_per_stage=2,
    recalibration_images=128,
    tuning_updates=1,
    healing_draws=2,
    healing_images=(100, 40),
    selection_images=50,
)
