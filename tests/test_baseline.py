"""A baseline is trained once for everything that determines it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from consensus_cli.data.share import ALL
from consensus_cli.experiment.original import cached
from consensus_cli.models.classifier import Classifier


class Trainer:
    def __init__(self) -> None:
        self.model = Classifier(nn.Identity(), nn.Linear(2, 2))
        self.times = 0

    def __call__(self, model: Classifier) -> None:
        assert model is not self.model
        self.times += 1
        nn.init.constant_(model.network.weight, 7.0)  # type: ignore[arg-type]


def weight(trainer: Trainer) -> torch.Tensor:
    return trainer.model.network.weight  # type: ignore[return-value]


def test_trains_once_then_reads_the_same_weights(tmp_path: Path) -> None:
    first, second = Trainer(), Trainer()
    assert cached(first.model, {"seed": 0}, tmp_path, first, ALL)[1] is False
    assert cached(second.model, {"seed": 0}, tmp_path, second, ALL)[1] is True
    assert (first.times, second.times) == (1, 0)
    assert torch.equal(weight(first), weight(second))


@pytest.mark.parametrize("change", [{"seed": 1}, {"seed": 0, "recipe": {"epochs": 2}}])
def test_anything_that_determines_it_makes_another_baseline(tmp_path: Path, change: dict[str, object]) -> None:
    first, second = Trainer(), Trainer()
    cached(first.model, {"seed": 0}, tmp_path, first, ALL)
    cached(second.model, change, tmp_path, second, ALL)
    assert second.times == 1


def test_a_damaged_cache_is_trained_anew(tmp_path: Path) -> None:
    first, second = Trainer(), Trainer()
    path, _ = cached(first.model, {}, tmp_path, first, ALL)
    path.write_bytes(path.read_bytes()[:20])
    assert cached(second.model, {}, tmp_path, second, ALL)[1] is False
    assert second.times == 1


def test_a_training_that_fails_leaves_no_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer()

    def fail(_: Classifier) -> None:
        raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        cached(trainer.model, {}, tmp_path, fail, ALL)
    assert not list(tmp_path.glob("*.safetensors"))
    assert cached(trainer.model, {}, tmp_path, trainer, ALL)[1] is False


def test_of_two_that_need_it_at_once_one_trains_and_the_other_waits(tmp_path: Path) -> None:
    slow, other = Trainer(), Trainer()
    training, finish = threading.Event(), threading.Event()

    def train_slowly(model: Classifier) -> None:
        training.set()
        assert finish.wait(10)
        slow(model)

    threads = [
        threading.Thread(target=cached, args=(slow.model, {}, tmp_path, train_slowly, ALL)),
        threading.Thread(target=cached, args=(other.model, {}, tmp_path, other, ALL)),
    ]
    threads[0].start()
    assert training.wait(10)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()
    finish.set()
    for thread in threads:
        thread.join(10)
    assert (slow.times, other.times) == (1, 0)
    assert torch.equal(weight(slow), weight(other))
