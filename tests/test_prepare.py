"""What is resolved before a run starts."""

from __future__ import annotations

import pytest

from consensus_cli.config.composition import compose_run
from consensus_cli.experiment.prepare import prepare
from consensus_cli.screen import Screen

WORDS = ("experiment=smoke", "dataset.limit_train=200", "dataset.limit_test=50")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["precision=bf16"], "bf16"),
        (["precision=fp32"], "fp32"),
        (["precision=bf16", "scoring.precision=fp32"], "fp32"),
        (["precision=bf16", "criterion=random"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_scoring_runs_in_the_precision_of_training_unless_told_otherwise(words: list[str], expected: str) -> None:
    assert prepare(compose_run([*WORDS, *words]), Screen()).scoring_precision == expected
