"""The training loop: learns, repeats, counts its updates, and stops when the loss is no number."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.split import Augmentation
from consensus_cli.training import (
    SCHEDULES,
    Progress,
    Recipe,
    TrainingDivergedError,
    recalibrate_batch_norm,
    resolve_precision,
    train,
)

CPU = torch.device("cpu")
RECIPE = Recipe(
    epochs=6,
    learning_rate=0.1,
    schedule="cosine",
    milestones=(0.5,),
    momentum=0.9,
    weight_decay=0.0,
    batch_size=16,
    label_smoothing=0.0,
)


def bright_or_dark(count: int = 128) -> ImageTensors:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 100, (count, 1, 4, 4), generator=generator) + 150 * labels[:, None, None, None]
    return ImageTensors(images.to(torch.uint8), labels)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2))


def run(model: nn.Module, recipe: Recipe = RECIPE, seed: int = 0, **kwargs: object) -> list[Progress]:
    reports: list[Progress] = []
    train(
        model,
        bright_or_dark(),
        recipe,
        device=CPU,
        augmentation=Augmentation(pad=1),
        seed=seed,
        precision="fp32",
        report=reports.append,
        **kwargs,  # type: ignore[arg-type]
    )
    return reports


def test_learns_a_separable_problem_and_ends_in_eval_mode() -> None:
    model = small_network()
    reports = run(model)
    assert not model.training
    assert reports[-1].loss < 0.2 < reports[0].loss
    images, labels = next(bright_or_dark().batches(128))
    assert (model(images).argmax(1) == labels).all()


def test_same_seed_same_weights_other_seed_other_weights() -> None:
    models = [small_network() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        run(model, seed=seed)
    first, again, other = (model[2].weight for model in models)  # type: ignore[index]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("epochs", "updates"), [(1, 8), (0.5, 4), (2.25, 18), (0.01, 1)])
def test_epochs_may_be_fractions(epochs: float, updates: int) -> None:
    reports = run(small_network(), replace(RECIPE, epochs=epochs))
    assert (reports[-1].step, reports[-1].steps) == (updates, updates)


def test_no_epochs_change_nothing() -> None:
    model = small_network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert run(model, replace(RECIPE, epochs=0)) == []
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_batch_larger_than_the_data_still_trains() -> None:
    assert run(small_network(), replace(RECIPE, epochs=2, batch_size=1000))[-1].steps == 2


def test_weight_decay_spares_biases_and_norms() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2), nn.BatchNorm1d(2))
    reference = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.register_hook(torch.zeros_like)
    run(model, replace(RECIPE, weight_decay=0.1, schedule="constant"))
    weight, *vectors = list(model.parameters())
    assert (weight.abs() < reference[0].abs()).all()
    assert all(torch.equal(now, before) for now, before in zip(vectors, reference[1:], strict=True))


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    model = small_network()
    with torch.no_grad():
        model[2].weight.fill_(math.nan)  # type: ignore[index, union-attr, operator]
    with pytest.raises(TrainingDivergedError, match="update 1 of 48"):
        run(model)


def test_schedules_start_peak_and_end_where_they_should() -> None:
    assert SCHEDULES["constant"](0.9, ()) == 1
    assert SCHEDULES["cosine"](0, ()) == 1
    assert SCHEDULES["cosine"](0.5, ()) == pytest.approx(0.5)
    assert SCHEDULES["onecycle"](0, ()) < 0.1
    assert SCHEDULES["onecycle"](0.3, ()) == pytest.approx(1)
    assert SCHEDULES["onecycle"](0.999, ()) < 0.01
    assert [SCHEDULES["step"](t, (0.5, 0.75)) for t in (0.4, 0.5, 0.8)] == pytest.approx([1, 0.1, 0.01])


def test_precision_is_what_was_asked_for_and_auto_asks_the_processor() -> None:
    assert resolve_precision("fp32", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    native = torch.cpu.get_capabilities().get("avx512_bf16", False)
    assert resolve_precision("auto", CPU) == ("bf16" if native else "fp32")


def test_bf16_autocast_trains_fp32_weights() -> None:
    model = small_network()
    result = train(model, bright_or_dark(), RECIPE, device=CPU, augmentation=Augmentation(), seed=0, precision="bf16")
    assert result.loss < 0.3
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_recalibration_measures_the_images_and_changes_no_weight() -> None:
    model = small_network().eval()
    weights = [p.clone() for p in model.parameters()]
    split = bright_or_dark()
    recalibrate_batch_norm(model, split, images=128, batch_size=32, device=CPU, seed=0)
    pixels = next(split.batches(128))[0].flatten(1)
    torch.testing.assert_close(model[1].running_mean, pixels.mean(0))  # type: ignore[index]
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    assert not any(module.training for module in model.modules())


def test_recalibration_of_fewer_images_sees_only_those() -> None:
    model = small_network()
    recalibrate_batch_norm(model, bright_or_dark(), images=2, batch_size=32, device=CPU, seed=0)
    assert model[1].num_batches_tracked == 1  # type: ignore[index]
