"""Architectures of torchvision and timm: names, tags and arguments that are wrong are one line."""

from __future__ import annotations

import http.client
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from consensus_cli.errors import UserError
from consensus_cli.models import pretrained, zoo
from consensus_cli.models.spec import ModelSpec

SPEC = ModelSpec("torchvision", "squeezenet1_1", num_classes=4, mean=[0.5] * 3, std=[0.5] * 3)

#: source, name, arguments -> what the message says, and the hint
WRONG: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("torchvision", "resnet19", {}, "unknown torchvision model 'resnet19'", "'resnet1"),
    ("torchvision", "fcn_resnet50", {}, "unknown torchvision model 'fcn_resnet50'", "valid: alexnet"),
    ("torchvision", "resnet18", {"widht": 3}, "unexpected keyword argument 'widht'", "model.kwargs"),
    ("torchvision", "vit_b_16", {"image_size": 17}, "raised AssertionError: Input shape indivisible", "model.kwargs"),
    ("timm", "resnet50.nonsense", {}, "unknown timm model 'resnet50.nonsense'", "resnet50.a1_in1k"),
    ("timm", "resnte50", {}, "unknown timm model 'resnte50'", "did you mean 'resnet"),
    ("timm", "resnet10t", {"widht": 3}, "unexpected keyword argument 'widht'", "model.kwargs"),
    ("timm", "resnet10t", {"stem_width": "wide"}, "resnet10t raised TypeError", "model.kwargs"),
    ("cifar_resnet", "resnet20", {"width": 3}, "unexpected keyword argument 'width'", "it takes num_classes"),
    ("cifar_resnet", "resnet20", {"num_classes": -3}, "resnet20 raised RuntimeError", "it takes num_classes"),
    ("keras", "resnet20", {}, "unknown model.source 'keras'", "custom"),
]


@pytest.mark.parametrize(("source", "name", "arguments", "message", "hint"), WRONG)
def test_a_wrong_name_or_argument_is_one_line(
    source: str, name: str, arguments: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(UserError) as caught:
        zoo.build(replace(SPEC, source=source, name=name, kwargs=arguments), 3)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(("source", "name", "arguments", "message", "hint"), [wrong for wrong in WRONG if not wrong[2]])
def test_a_wrong_name_is_known_before_anything_is_built(
    source: str, name: str, arguments: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(UserError) as caught:
        zoo.check(ModelSpec(source, name))
    assert message in caught.value.message


@pytest.mark.parametrize(("source", "name"), [("timm", "resnet10t"), ("cifar_resnet", "resnet20")])
def test_grey_images_make_as_many_channels_as_the_mean_has_numbers(source: str, name: str) -> None:
    grey = replace(SPEC, source=source, name=name)
    assert zoo.build(grey, 1).eval()(torch.rand(2, 1, 32, 32)).shape == (2, 4)
    assert zoo.build(replace(grey, mean=[0.5], std=[0.5]), 1).eval()(torch.rand(2, 1, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_published_weights_for_other_classes_leave_the_head_fresh(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    published = models.get_model(name).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: published)
    spec = replace(SPEC, name=name, weights="IMAGENET1K_V1")
    network = zoo.build(spec, 3).network
    drawn = {key: value.clone() for key, value in network.state_dict().items()}
    said = pretrained.load_weights(network, spec, 3)
    fresh = [key for key, value in network.state_dict().items() if not torch.equal(value, published[key])]
    assert fresh == [key for key in drawn if drawn[key].shape != published[key].shape]
    assert len(fresh) == 2
    assert all(torch.equal(network.state_dict()[key], drawn[key]) for key in fresh)
    assert said.fresh_head
    assert said.notes == [f"weights IMAGENET1K_V1 of {name}: the head starts fresh ({', '.join(fresh)})"]


@pytest.mark.parametrize("error", [OSError("no network"), http.client.IncompleteRead(b""), RuntimeError("bad hash")])
def test_weights_that_cannot_be_fetched_are_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(UserError, match="weights DEFAULT of squeezenet1_1 cannot be fetched"):
        pretrained.load_weights(nn.Module(), replace(SPEC, weights="DEFAULT"), 3)


#: source, name, weights -> what the message says
WEIGHTS = [
    ("torchvision", "resnet18", "IMAGENET1K_V9", "unknown weights of resnet18 'IMAGENET1K_V9'"),
    ("torchvision", "resnet18", "weights/IMAGENET1K_V1", "checkpoint weights/IMAGENET1K_V1 does not exist"),
    ("timm", "resnet50", "pretrianed", "checkpoint pretrianed does not exist"),
    ("timm", "test_vit4", "pretrained", "timm has no weights of test_vit4"),
    ("cifar_resnet", "resnet20", "https://example.org/x.pth", "is an address, not a file"),
    ("cifar_resnet", "resnet20", "~nobody_here/x.pth", "checkpoint ~nobody_here/x.pth does not exist"),
]


@pytest.mark.parametrize(("source", "name", "weights", "message"), WEIGHTS)
def test_weights_that_are_not_there_are_one_line(source: str, name: str, weights: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        pretrained.check_model(ModelSpec(source, name, weights))
    assert message in caught.value.message


def test_a_file_without_suffix_is_no_name(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = models.get_model("squeezenet1_1", num_classes=4)
    torch.save(network.state_dict(), tmp_path / "squeezed")
    monkeypatch.chdir(tmp_path)
    spec = replace(SPEC, weights="squeezed")
    pretrained.check_model(spec)
    fresh = zoo.build(spec, 3).network
    pretrained.load_weights(fresh, spec, 3)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in fresh.state_dict().items())
