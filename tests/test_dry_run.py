"""What a network must be able to do is tried before a run; what it cannot is one line, with how to fix it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import odd_networks

from consensus_cli.errors import UserError
from consensus_cli.experiment.dry_run import Demands, DryRun, dry_run, initialise_lazy_layers
from consensus_cli.models.classifier import Classifier, Normalize

IMAGES = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
COLOUR = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3])
DEMANDS = Demands(
    name="Net",
    classes=10,
    precision="fp32",
    scoring_precision="fp32",
    any_precision=True,
    any_scoring_precision=True,
    training="needed",
    attacked=True,
)
BF16 = replace(DEMANDS, precision="bf16", scoring_precision="bf16")


def build(name: str, channels: int = 3) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Normalize((0.5,) * channels, (0.25,) * channels), getattr(odd_networks, name)()).eval()


def tried(name: str, demands: Demands = DEMANDS) -> tuple[DryRun, Classifier]:
    model = build(name)
    initialise_lazy_layers(model, IMAGES, demands.name)
    return dry_run(model, IMAGES, LABELS, demands), model


@pytest.mark.parametrize(
    "name",
    [
        *("Plain", "Lazy", "DictionaryAnswer", "DataclassAnswer", "TupleAnswer", "Caches", "Tuples"),
        *("Convolutional", "Cosine", "Distilled", "Auxiliary", "SumsLosses", "WritesImages"),
    ],
)
@pytest.mark.parametrize("demands", [DEMANDS, BF16])
def test_nothing_is_wrong_with(name: str, demands: Demands) -> None:
    found, model = tried(name, demands)
    assert found == DryRun(demands.precision, demands.scoring_precision, outputs=10)
    assert model.memory_format == torch.channels_last
    assert model.network.stem[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("NeedsSize", "Net does not take images of 3×16×16: AssertionError: expected 32 pixels", "image_size=32"),
        ("NeedsMask", "missing 1 required positional argument: 'mask'", "a batch of images alone"),
        ("FiveOutputs", "Net has 5 outputs, the dataset has 10 classes", "num_classes: 10"),
        ("OtherRows", "Net answers 4 images with 8 rows of logits", "one row for each image"),
        ("AnswersMaps", "answers with a tensor of shape (4, 8, 8, 8), not with logits", "return the logits"),
        ("AuxiliaryFirst", "in training mode, Net answers with other logits than those of fc", "the same logits first"),
        (
            "BuildsItself",
            "makes weights or buffers in its forward pass: network.blocks.0",
            "in its constructor",
        ),
        ("Accumulates", "differently the second time, in eval mode", "what it keeps from one forward pass"),
        ("PlainList", "Net computes with 15 parameters that are not among its own", "in nn.ModuleList"),
        ("Probabilities", "answers with probabilities (each row sums to 1)", "leave out the softmax"),
        ("NotFinite", "values that are not finite", "images are in [0, 1]"),
        ("AlwaysDrops", "answers the same images differently the second time", "training=self.training"),
        ("Hooked", "a deep copy of Net does not answer as the network does", "refers to the original"),
        ("Borrows", "a deep copy of Net computes with the parameter network.fc.weight of the original", "closure"),
        ("OwnNormalisation", "expected images in [0, 1]", "'model.mean=[0,0,0]' 'model.std=[1,1,1]'"),
        ("OneChannel", "Net does not take images of 3×16×16", "one number in model.mean and model.std"),
        ("KeepsBatchSize", "answers one image after 4 with 4 rows of logits", "any number of images"),
        (
            "KeepsGraph",
            "in training mode, raised RuntimeError: Trying to backward",
            "one batch of images after another",
        ),
        ("MakesBuffers", "makes weights or buffers in its forward pass: places", "in its constructor"),
        ("FeaturesFirst", "answers with 8 numbers first and with 10", "logits first"),
        ("Scripted", "Net holds TorchScript modules (blocks.2, blocks.2.", "Python code"),
        ("Uncopyable", "copying Net raised RuntimeError: holds an open file", "copy.deepcopy"),
        ("Frozen", "Net has nothing to train", "finetune=none"),
        ("TrainsOtherwise", "the network answers with a tuple", "return the logits"),
        ("FailsInTraining", "Net, in training mode, raised KeyError: 'labels' (odd_networks.py, line", "backward pass"),
    ],
)
def test_what_cannot_work_is_one_line_with_how_to_fix_it(name: str, message: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        tried(name)
    assert message in error.value.message
    assert hint in error.value.hint


def test_a_colour_network_on_grey_images_gets_a_hint_how_grey_spreads() -> None:
    for name, size in (("Plain", ""), ("NeedsSize", "model.image_size=32 and ")):
        with pytest.raises(UserError) as error:
            dry_run(build(name, channels=1), IMAGES, LABELS, DEMANDS)
        assert f"give it {size}'model.mean=[0.5,0.5,0.5]' 'model.std=[0.5,0.5,0.5]'" in error.value.hint


def test_code_that_needs_pytorchs_own_memory_format_gets_it() -> None:
    found, model = tried("Views")
    assert model.memory_format == torch.contiguous_format
    assert model.network.stem[0].weight.is_contiguous()
    (note,) = found.notes
    assert note.startswith("Net cannot run in the memory format channels_last")
    assert "RuntimeError: view size" in note
    with torch.no_grad():
        assert model(COLOUR.contiguous(memory_format=torch.channels_last)).shape == (4, 10)


def test_outputs_that_no_class_has_are_named() -> None:
    found, _ = tried("ManyOutputs")
    assert found.notes == ["Net has 1000 outputs for the 10 classes of the dataset"]


def test_what_the_answers_leave_open_is_noted() -> None:
    found, _ = tried("Exits")
    assert found.notes == ["Net answers with 3 tensors that may be logits; the first is taken"]
    found, _ = tried("Centred")
    assert found.notes == ["Net answers an image differently among others: its accuracy depends on the batch size"]


def test_where_bfloat16_does_not_work_fp32_does_unless_it_was_asked_for() -> None:
    found, _ = tried("WritesFloats", BF16)
    assert (found.precision, found.scoring_precision) == ("fp32", "fp32")
    assert [note.split(":")[0] for note in found.notes] == ["scoring is in fp32", "training is in fp32"]
    with pytest.raises(UserError, match="in bfloat16, Net raised") as error:
        tried("WritesFloats", replace(BF16, any_scoring_precision=False))
    assert "scoring.precision=fp32" in error.value.hint
    with pytest.raises(UserError, match="Net, in training mode, raised"):
        tried("WritesFloats", replace(BF16, any_precision=False))


def test_attacks_need_gradients_of_the_images() -> None:
    with pytest.raises(UserError, match="gives attacks no gradient") as error:
        tried("NoGradient")
    assert "attacks=none" in error.value.hint
    assert tried("NoGradient", replace(DEMANDS, attacked=False))[0].notes == []


@pytest.mark.parametrize("name", ["Frozen", "FailsInTraining"])
def test_what_is_not_trained_need_not_train(name: str) -> None:
    found, _ = tried(name, replace(DEMANDS, training="measured"))
    assert not found.trains
    assert found.notes[0].startswith("the energy of training is not measured: Net")
    found, _ = tried(name, replace(DEMANDS, training="none"))
    assert (found.trains, found.notes) == (True, [])


def test_the_network_itself_never_runs_and_nothing_random_is_used_up() -> None:
    model = build("Caches")
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.random.get_rng_state()
    dry_run(model, COLOUR, LABELS, DEMANDS)
    assert all(block.kept is None for block in model.network.blocks)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
    assert torch.equal(torch.random.get_rng_state(), random)
