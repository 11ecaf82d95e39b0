"""What the configuration of a run makes of its trainings."""

from __future__ import annotations

import pytest

from consensus_cli.config.composition import compose_run
from consensus_cli.experiment import recipes


def test_a_schedule_over_the_run_is_walked_through_once_without_a_gap() -> None:
    words = ["prune.step=2", "finetune.span=run", "finetune.epochs_per_step=0.5", "finetune.final_epochs=1"]
    run = compose_run(words)
    spans = [recipes.after_removal(run, removed, target_blocks=5).span for removed in (2, 4, 5)]
    spans.append(recipes.at_the_end(run, 5, target_blocks=5).span)
    assert [start for start, _ in spans] == pytest.approx([0, 0.2, 0.4, 0.6])
    assert [end for _, end in spans] == pytest.approx([0.2, 0.4, 0.6, 1])


def test_by_default_every_fine_tuning_walks_through_the_whole_schedule() -> None:
    run = compose_run([])
    assert recipes.after_removal(run, 3, target_blocks=12).span == (0, 1)
    assert recipes.at_the_end(run, 12, target_blocks=12).span == (0, 1)


def test_without_any_epoch_there_is_no_span_to_divide() -> None:
    run = compose_run(["finetune=none", "finetune.span=run"])
    assert recipes.after_removal(run, 1, target_blocks=2).epochs == 0


def test_the_settings_reach_the_recipe() -> None:
    run = compose_run(["finetune.distill=0.3", "finetune.ema_decay=0.9", "baseline.accumulate_batches=4"])
    recovery = recipes.after_removal(run, 1, target_blocks=12)
    assert (recovery.distill, recovery.ema_decay, recovery.accumulate_batches) == (0.3, 0.9, 1)
    assert recipes.training_baseline(run).accumulate_batches == 4
    part = recipes.part_of_epoch(run, 0.5)
    assert (part.distill, part.ema_decay, part.epochs) == (0, 0, 0.5)


def test_the_paper_recipe_is_the_paper_s() -> None:
    run = compose_run(["finetune=paper"])
    between, last = recipes.after_removal(run, 1, 12), recipes.at_the_end(run, 12, 12)
    assert (between.epochs, last.epochs) == (10, 200)
    assert (between.learning_rate, between.momentum, between.batch_size) == (0.01, 0.9, 128)
    assert [last.rate_factor(epoch / 200) for epoch in (99, 100, 149, 150)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_the_strong_recipe_uses_everything_that_helps() -> None:
    settings = compose_run(["finetune=strong"]).finetune
    assert settings.recalibration_images > 0
    assert 0 < settings.distill < 1
    assert settings.ema_decay > 0
    assert settings.span == "run"
