"""The training loop: learns, repeats, counts its updates, and stops when the loss is not a number."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers.tiny import CPU, bright_or_dark, small_network
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.split import Augmentation
from consensus_cli.errors import UserError
from consensus_cli.models.resnet import resnet
from consensus_cli.training import (
    SCHEDULES,
    Progress,
    Recipe,
    TrainingDivergedError,
    resolve_compile,
    resolve_precision,
    train,
)
from consensus_cli.training.distillation import distilling
from consensus_cli.training.machine import accelerated, repeated_modules

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
    assert (reports[-1].update, reports[-1].updates) == (updates, updates)


def test_no_epochs_change_nothing() -> None:
    model = small_network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert run(model, replace(RECIPE, epochs=0)) == []
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_batch_larger_than_the_data_still_trains() -> None:
    assert run(small_network(), replace(RECIPE, epochs=2, batch_size=1000))[-1].updates == 2


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


def test_a_loss_that_is_not_a_number_stops_the_training() -> None:
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
    native = "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    assert resolve_precision("auto", CPU) == ("bf16" if native else "fp32")


def test_bf16_autocast_trains_fp32_weights() -> None:
    model = small_network()
    result = train(model, bright_or_dark(), RECIPE, device=CPU, augmentation=Augmentation(), seed=0, precision="bf16")
    assert result.loss < 0.3
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_micro_batches_give_the_update_of_the_whole_batch() -> None:
    """Without batch norm an update is the same however the batch is divided."""
    networks = []
    for parts in (1, 4):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        reports = run(network, replace(RECIPE, accumulate_batches=parts, epochs=1.5))
        assert (reports[-1].update, reports[-1].updates) == (12, 12)
        networks.append(network)
    torch.testing.assert_close(networks[0][1].weight, networks[1][1].weight)


def test_more_micro_batches_than_images_is_an_error() -> None:
    with pytest.raises(UserError, match="too few for 200 micro-batches"):
        run(small_network(), replace(RECIPE, batch_size=200, accumulate_batches=200))


def test_an_unknown_schedule_or_precision_is_refused() -> None:
    with pytest.raises(UserError, match="unknown schedule 'cosin'"):
        run(small_network(), replace(RECIPE, schedule="cosin"))
    with pytest.raises(UserError, match="unknown precision 'fp16'"):
        train(small_network(), bright_or_dark(), RECIPE, precision="fp16")


def test_a_training_of_part_of_a_schedule_continues_where_the_part_begins() -> None:
    recipe = replace(RECIPE, span=(0.5, 1.0))
    assert recipe.rate_factor(0) == pytest.approx(SCHEDULES["cosine"](0.5, ()))
    assert recipe.rate_factor(0.5) == pytest.approx(SCHEDULES["cosine"](0.75, ()))
    assert recipe.rate_factor(1) == pytest.approx(0)


def test_the_averaged_weights_lag_behind_and_are_what_remains() -> None:
    """Without noise in the gradient the average of a moving weight is closer to where it came from."""
    start = small_network()[2].weight.detach().clone()  # type: ignore[index, union-attr, operator]
    last, averaged = small_network(), small_network()
    run(last, replace(RECIPE, epochs=1))
    run(averaged, replace(RECIPE, epochs=1, ema_decay=0.9))
    moved = [(model[2].weight - start).norm() for model in (last, averaged)]  # type: ignore[index, operator]
    assert 0 < moved[1] < moved[0]
    assert not torch.equal(last[1].running_mean, averaged[1].running_mean)  # type: ignore[index, arg-type]


def test_no_decay_keeps_the_last_weights() -> None:
    last, averaged = small_network(), small_network()
    run(last, replace(RECIPE, epochs=1))
    run(averaged, replace(RECIPE, epochs=1, ema_decay=1e-9))
    torch.testing.assert_close(averaged.state_dict(), last.state_dict())


def test_distillation_alone_learns_the_teacher_without_a_label() -> None:
    teacher, student = small_network(), small_network()
    run(teacher)
    nn.init.normal_(student[2].weight)  # type: ignore[index, arg-type]
    split = bright_or_dark()
    unlabelled = ImageTensors(split.images, torch.zeros(len(split), dtype=torch.int64))
    recipe = replace(RECIPE, distill=1.0, learning_rate=0.02)
    train(
        student,
        unlabelled,
        recipe,
        device=CPU,
        augmentation=Augmentation(),
        seed=0,
        precision="fp32",
        teacher=teacher.train(),
    )
    images, labels = next(split.batches(128))
    assert not teacher.training
    assert (student(images).argmax(1) == labels).all()


def test_distillation_needs_a_teacher() -> None:
    with pytest.raises(UserError, match="teacher"):
        run(small_network(), replace(RECIPE, distill=0.5))


def test_a_student_like_its_teacher_has_nothing_to_learn_and_another_has() -> None:
    teacher = small_network().eval()
    images, _ = next(bright_or_dark().batches(32))
    other = copy.deepcopy(teacher)
    nn.init.normal_(other[2].weight, generator=torch.Generator().manual_seed(0))  # type: ignore[index, arg-type]
    for student, expected in ((copy.deepcopy(teacher), 0.0), (other, None)):
        with distilling(student, teacher, images[:2]) as distillation:
            loss = distillation.loss(images, student(images)).detach()
        assert loss >= 0
        assert (float(loss) == pytest.approx(0, abs=1e-6)) == (expected == 0.0)
        assert not any(module._forward_pre_hooks for module in (*student.modules(), *teacher.modules()))


def test_the_loss_of_distillation_worked_by_hand() -> None:
    """Two classes, one image: logits 4 and 0 against 0 and 0 at temperature 4; classifier's input 3 against 1."""
    teacher, student = nn.Linear(1, 2, bias=False), nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        teacher.weight.zero_()
        student.weight.copy_(torch.tensor([[4 / 3], [0.0]]))
    with distilling(student, teacher, torch.zeros(1, 1)) as distillation:
        logits = student(torch.tensor([[3.0]]))
        loss = distillation.loss(torch.tensor([[1.0]]), logits).detach()
    q = math.exp(1) / (math.exp(1) + 1)
    divergence = 0.5 * math.log(0.5 / q) + 0.5 * math.log(0.5 / (1 - q))
    assert float(loss) == pytest.approx(16 * divergence + (3 - 1) ** 2 / 1)


def test_after_a_training_the_model_is_the_plain_module_again() -> None:
    model = small_network()
    train(model, bright_or_dark(), RECIPE, device=CPU, augmentation=Augmentation(), seed=0, precision="bf16")
    assert "forward" not in vars(model)
    assert model(torch.zeros(2, 1, 4, 4)).dtype == torch.float32


def test_the_repeated_blocks_are_what_is_compiled() -> None:
    network = resnet(20)
    assert repeated_modules(network) == [*network.layer1, *network.layer2, *network.layer3]
    assert repeated_modules(small_network()) == []
    gpu, small, large = torch.device("cuda"), (3, 32, 32), (3, 224, 224)
    assert [resolve_compile(asked, CPU, large) for asked in ("auto", True, False)] == [False, True, False]
    assert [resolve_compile("auto", gpu, shape) for shape in (small, large)] == [False, True]
    assert resolve_compile(True, gpu, small)


def test_private_names_of_other_libraries_still_do_what_they_are_used_for() -> None:
    """`_shared_state` holds Accelerate's settings, `_compiled_call_impl = None` undoes `Module.compile`."""
    own = Accelerator(cpu=True, gradient_accumulation_steps=2)
    for asked, precision, parts in (("bf16", "bf16", 1), ("fp32", "no", 4), ("bf16", "bf16", 1)):
        with accelerated(CPU, asked, parts) as accelerator:
            assert (accelerator.mixed_precision, accelerator.gradient_accumulation_steps) == (precision, parts)
        assert (own.mixed_precision, own.gradient_accumulation_steps, own.is_main_process) == ("no", 2, True)
    layer = nn.Linear(2, 2)
    assert layer._compiled_call_impl is None
    layer.compile()
    assert layer._compiled_call_impl is not None
    layer._compiled_call_impl = None
    assert layer(torch.zeros(1, 2)).shape == (1, 2)
    assert all(issubclass(kind, _BatchNorm) for kind in (nn.BatchNorm1d, nn.BatchNorm3d, nn.SyncBatchNorm))


def test_a_strangers_loader_is_trained_on_with_nothing_but_a_recipe() -> None:
    by_split, by_loader = small_network(), small_network()
    train(by_split, bright_or_dark(), RECIPE)
    train(by_loader, list(bright_or_dark().batches(50)), RECIPE)
    assert all(torch.equal(a, b) for a, b in zip(by_split.parameters(), by_loader.parameters(), strict=True))


@pytest.mark.slow
def test_compiled_training_ends_where_the_plain_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    split = bright_or_dark()
    results = []
    compiled_modules: list[nn.Module] = []
    compile_module = nn.Module.compile

    def noted(module: nn.Module) -> None:
        compiled_modules.append(module)
        compile_module(module)

    monkeypatch.setattr(nn.Module, "compile", noted)
    for compiled in (False, True):
        torch.manual_seed(0)
        network = resnet(20, num_classes=2, in_channels=1).to(memory_format=torch.channels_last)
        recipe = replace(RECIPE, epochs=2, learning_rate=0.01)
        results.append(
            train(
                network,
                split,
                recipe,
                device=CPU,
                augmentation=Augmentation(),
                seed=0,
                precision="fp32",
                compiled=compiled,
            ).loss
        )
        assert all(block._compiled_call_impl is None for block in network.layer1)
        assert compiled_modules == (repeated_modules(network) if compiled else [])
    # Fused operations round otherwise, which six updates of an untrained network make visible.
    assert results[1] == pytest.approx(results[0], rel=0.2)


def test_a_training_leaves_no_trace_that_changes_the_next_one() -> None:
    untrained = small_network()
    trained_before = copy.deepcopy(untrained)
    own = set(vars(untrained))
    train_in_bf16(trained_before, epochs=0.2)
    assert set(vars(trained_before)) == own
    untrained.load_state_dict(trained_before.state_dict())
    for model in (untrained, trained_before):
        train_in_bf16(model, epochs=1)
    states = [model.state_dict() for model in (untrained, trained_before)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def train_in_bf16(model: nn.Module, epochs: float) -> None:
    recipe = replace(RECIPE, epochs=epochs)
    train(model, bright_or_dark(), recipe, device=CPU, augmentation=Augmentation(), seed=0, precision="bf16")
