"""A pruned network as the stock network of fewer layers: shapes, names and answers, or why there is none."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from consensus_cli.data.files import Geometry
from consensus_cli.errors import UserError
from consensus_cli.experiment.export import FORMATS
from consensus_cli.models import zoo
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.spec import ModelSpec
from consensus_cli.models.stock import as_stock
from consensus_cli.pruning.replacement import MapForm, install_forms
from consensus_cli.pruning.surgery import remove_blocks

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 6, "num_heads": 2}
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": [2, 6], "num_heads": [2, 2]}
PATCHES = {"hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}

#: network, its arguments, the side of its images, blocks that go, arguments that the stock network is made with
TIMM: dict[str, tuple[str, dict[str, Any], int, list[str], dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", VIT, 16, ["blocks.2", "blocks.5", "blocks.1"], {"depth": 3}),
    "vit_with_more": (
        "vit_tiny_patch16_224",
        VIT | {"init_values": 0.1, "no_embed_class": True, "drop_path_rate": 0.2, "reg_tokens": 2},
        16,
        ["blocks.3"],
        {"depth": 5},
    ),
    # Its class takes *args and **kwargs.
    "distilled": ("deit_tiny_distilled_patch16_224", VIT, 16, ["blocks.3"], {"depth": 5}),
    # Modules of its stem are numbered 0, 2, 4, 6.
    "xcit": (
        "xcit_nano_12_p16_224",
        {"img_size": 32, "embed_dim": 16, "depth": 4, "num_heads": 2},
        32,
        ["blocks.2"],
        {"depth": 3},
    ),
    "convnext": (
        "convnext_atto",
        {"dims": [8, 8, 8, 8], "drop_path_rate": 0.1},
        32,
        ["stages.2.blocks.3", "stages.0.blocks.1", "stages.2.blocks.1"],
        {"depths": [1, 2, 4, 2]},
    ),
    "resnet": ("resnet10t", {"layers": [2, 1, 3, 1]}, 32, ["layer3.1", "layer1.1"], {"layers": [1, 1, 2, 1]}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        SWIN,
        32,
        ["layers.1.blocks.2", "layers.1.blocks.3"],
        {"depths": [2, 4]},
    ),
}
#: class of a configuration, its values, blocks that go, values that are lowered
HF: dict[str, tuple[str, dict[str, Any], list[str], dict[str, Any]]] = {
    "vit": ("ViTConfig", PATCHES | {"intermediate_size": 16}, ["vit.layers.1"], {"num_hidden_layers": 4}),
    # Its configuration names the layer that a backbone ends with, and its name ends in a number.
    "dinov2": ("Dinov2Config", PATCHES, ["dinov2.encoder.layer.3"], {"num_hidden_layers": 4}),
    "convnext": (
        "ConvNextConfig",
        {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 2, 3, 1]},
        ["convnext.encoder.stages.2.layers.1", "convnext.encoder.stages.1.layers.1"],
        {"depths": [1, 1, 2, 1]},
    ),
}


def pruned(spec: ModelSpec, blocks: list[str], channels: int = 3) -> Classifier:
    """Builds a network whose blocks all differ, gamma of layer scales and biases too, and removes some."""
    torch.manual_seed(0)
    model = zoo.build(spec, channels).eval()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    remove_blocks(model, blocks)
    model.classes = ("ant", "bee", "cow")
    return model


def of_timm(name: str, kwargs: dict[str, Any]) -> ModelSpec:
    pytest.importorskip("timm", reason="timm is an extra")
    return ModelSpec("timm", name, num_classes=3, kwargs=kwargs, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])


def of_hf(kind: str, values: dict[str, Any], folder: Path) -> ModelSpec:
    transformers: Any = pytest.importorskip("transformers", reason="transformers is an extra")
    getattr(transformers, kind)(**values).save_pretrained(folder)
    spec = ModelSpec("hf", str(folder), num_classes=3, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
    spec.kwargs = zoo.arguments(spec)
    return spec


def images(side: int, channels: int = 3) -> Tensor:
    return torch.rand(4, channels, side, side, generator=torch.Generator().manual_seed(1))


def check(model: Classifier, source: str, x: Tensor, folder: Path) -> Classifier:
    """Checks the stock network, and what is written of it and loaded again; returns it."""
    stock = as_stock(model, source)
    with torch.no_grad():
        assert torch.equal(stock(x), model(x))
        written = FORMATS[source].write(stock, x, folder, resize_size=x.shape[-1])
        assert (written(x) - model(x)).abs().max() < 1e-5
    assert {file.name for file in folder.iterdir()} == set(FORMATS[source].holds)
    return stock


@pytest.mark.parametrize("name", TIMM)
def test_of_timm(name: str, tmp_path: Path) -> None:
    architecture, kwargs, side, blocks, lowered = TIMM[name]
    model = pruned(of_timm(architecture, kwargs), blocks)
    stock = check(model, "timm", images(side), tmp_path / "written")
    assert stock.built is not None
    assert stock.built[0].kwargs == kwargs | lowered


def test_what_timm_writes_keeps_rates_and_says_mean_and_deviation(tmp_path: Path) -> None:
    timm: Any = pytest.importorskip("timm", reason="timm is an extra")
    architecture, kwargs, side, blocks, _ = TIMM["vit_with_more"]
    check(pruned(of_timm(architecture, kwargs), blocks), "timm", images(side), tmp_path / "written")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'written'}", pretrained=True)
    assert loaded.blocks[4].drop_path1.drop_prob == pytest.approx(0.2)
    said = timm.data.resolve_model_data_config(loaded)
    assert said["mean"] == pytest.approx((0.4, 0.5, 0.6))
    assert said["std"] == pytest.approx((0.2, 0.25, 0.3))
    assert said["input_size"] == (3, 16, 16)
    assert loaded.pretrained_cfg["label_names"] == ["ant", "bee", "cow"]


def test_grey_images_that_spread_over_three_channels(tmp_path: Path) -> None:
    architecture, kwargs, side, blocks, _ = TIMM["vit"]
    model = pruned(of_timm(architecture, kwargs), blocks, channels=1)
    check(model, "timm", images(side, channels=1), tmp_path / "written")


@pytest.mark.parametrize("name", HF)
def test_of_transformers(name: str, tmp_path: Path) -> None:
    kind, values, blocks, lowered = HF[name]
    model = pruned(of_hf(kind, values, tmp_path), blocks)
    stock = check(model, "hf", images(16 if "image_size" in values else 32), tmp_path / "written")
    config: Any = stock.network.config
    assert {name: getattr(config, name) for name in lowered} == lowered
    assert config.id2label == {0: "ant", 1: "bee", 2: "cow"}


def test_image_files_reach_it_as_they_reached_the_run(tmp_path: Path) -> None:
    side, geometry = 96, Geometry.for_size(96)
    file = (255 * torch.rand(3, 130, 150, generator=torch.Generator().manual_seed(2))).byte()
    picture, pixels = Image.fromarray(file.permute(1, 2, 0).numpy()), geometry(file) / 255
    kind, values, blocks, _ = HF["convnext"]
    model = pruned(of_hf(kind, values, tmp_path), blocks)
    FORMATS["hf"].write(as_stock(model, "hf"), images(side), tmp_path / "hf", resize_size=geometry.resize_size)
    transformers: Any = importlib.import_module("transformers")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    assert torch.allclose(processor(picture, return_tensors="pt").pixel_values[0], model.normalize(pixels), atol=1e-5)

    architecture, kwargs, _, blocks, _ = TIMM["resnet"]
    model = pruned(of_timm(architecture, kwargs), blocks)
    FORMATS["timm"].write(as_stock(model, "timm"), images(side), tmp_path / "timm", resize_size=geometry.resize_size)
    timm: Any = importlib.import_module("timm")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    made = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded))(picture)
    # Pillow, which it resizes with, rounds otherwise than PyTorch: by two of 255 levels at most.
    assert (made - model.normalize(pixels)).abs().max() < 2.5 / 255 / 0.2


def refused(model: Classifier, source: str) -> str:
    with pytest.raises(UserError, match="not a stock network of fewer layers") as raised:
        as_stock(model, source)
    assert "--format safetensors" in raised.value.hint
    return raised.value.message


@pytest.mark.parametrize(
    ("architecture", "kwargs", "blocks", "reason"),
    [
        ("vit_tiny_patch16_224", VIT, ["blocks.3+norm1+attn"], "blocks.3.attn went, but not the whole block around it"),
        ("regnetx_002", {}, ["s4.b2"], "no argument of regnetx_002 makes the blocks 's*.b' 1, 1, 4, 6 instead of"),
        # The block behind the one that goes is wider than the one whose place it would take.
        ("efficientformerv2_s0", {}, ["stages.2.blocks.1"], "with depths=[2, 2, 5, 4] what is left does not fit"),
    ],
)
def test_no_stock_network_of_timm(architecture: str, kwargs: dict[str, Any], blocks: list[str], reason: str) -> None:
    assert reason in refused(pruned(of_timm(architecture, kwargs), blocks), "timm")


def test_a_map_in_place_of_a_block() -> None:
    model = pruned(of_timm("vit_tiny_patch16_224", VIT), ["blocks.3"])
    install_forms(model.network, {"blocks.3": vars(MapForm("scale", 16, -1))})
    assert "a map stands in place of blocks.3" in refused(model, "timm")


def test_a_network_from_elsewhere() -> None:
    model = pruned(ModelSpec("cifar_resnet", "resnet20", num_classes=3), ["layer1.1"])
    assert "it was built by cifar_resnet, not by timm" in refused(model, "timm")
