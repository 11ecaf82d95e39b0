"""Which networks can be pruned: one network of every family of timm, torchvision and transformers is tried.

The smallest member of each family, with random weights, is taken through discovery with its trials, scoring, the
removal of two blocks, a reload of the weights into a rebuilt network, and the export as the package does it, with
`torch.export` and, where the extra is installed, to ONNX. Each network runs in a process of its own, so that one that
hangs or crashes costs its time limit at most. What was found is one line of JSON per network in FOLDER/networks.jsonl;
a network that has a line, with the libraries as they are, is not tried again. The page is written from the lines.

    python scripts/coverage.py                                      # writes docs/coverage.md
    python scripts/coverage.py --only timm/resnet18 timm/vit_tiny   # networks whose names begin so, and no page
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import logging
import math
import multiprocessing
import re
import resource
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
import transformers
from safetensors.torch import load
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from consensus_cli.errors import UserError
from consensus_cli.experiment.export import FORMATS, Format
from consensus_cli.models.classifier import logits_of
from consensus_cli.models.modes import evaluating
from consensus_cli.models.weights import load_into, serialize
from consensus_cli.pruning import Block, candidates, find_blocks, remove_blocks
from consensus_cli.scoring.representations import ONE_PASS, AblationEngine

#: Candidates by hand, from the papers or the code of each architecture: those among whole blocks and, where a second
#: number stands, those among the branches of blocks.
#:
#: The rule: a block is the smallest module whose output is its input plus a branch, an activation after the sum
#: included. A stage is a run of blocks of one shape, rows, columns and channels in whatever order. Its first block is
#: kept. So of a stage of d blocks d − 1 are candidates, whether the first one changes the shape (ResNet) or a layer
#: before it does (ConvNeXt, Swin); all d are where that layer is a residual module as well, without a shortcut that is
#: the identity: it is the first block then. A block whose shortcut is scaled, projected, normalised or concatenated is
#: none. Branches of a block are counted one by one; of an encoder layer there are two.
EXPECTED: dict[str, tuple[int, ...]] = {
    # depth 12, one shape; LayerScale is part of the branch
    "timm/beit_base_patch16_224": (11, 22),
    "timm/deit_tiny_patch16_224": (11, 22),
    "timm/vit_tiny_patch16_224": (11, 22),
    "timm/vit_tiny_patch16_dinov3_qkvb": (11, 22),
    "timm/naflexvit_base_patch16_parfac_gap": (11, 22),
    "timm/qwen3_vit_88m": (11, 22),
    "timm/samvit_base_patch16_224": (11, 22),
    "timm/vit_srelpos_small_patch16_224": (11, 22),
    # the hybrid's backbone is a stem without blocks
    "timm/vit_tiny_r_s16_p8_224": (11, 22),
    # depth 16 and 32
    "timm/gemma4_vit_167m": (15, 30),
    "timm/deepseek_vit_412m": (31, 62),
    # 24 blocks of patches; 2 of the class token, which is the second thing that they are given: their branches go
    "timm/cait_xxs24_224": (23 + 2, 46 + 2),
    # 2 blocks in each of 4 stages; the 6 parallel blocks take and return one tensor per scale
    "timm/coat_tiny": (4, 8),
    # 10 blocks of patches, 2 with the class token
    "timm/convit_tiny": (9 + 1, 18 + 2),
    "timm/convmixer_768_32": (31,),
    # 3 times: a block of 96 channels, 4 of 192, cross-attention that returns the class token only
    "timm/crossvit_tiny_240": (3 * 3, 3 * 6),
    # depths 1 1 3 1 of a spatial and a channel block, each with two position encodings, attention and MLP
    "timm/davit_tiny": (1 + 1 + 5 + 1, 4 * 8),
    # depths 3 3 9 3, 2 2 4 2 and so on
    "timm/convnext_zepto_rms": (1 + 1 + 3 + 1,),
    "timm/inception_next_atto": (1 + 1 + 5 + 1,),
    "timm/mambaout_femto": (2 + 2 + 8 + 2,),
    "timm/edgenext_xx_small": (1 + 1 + 5 + 1,),
    "timm/fasternet_t0": (0 + 1 + 7 + 1,),
    "timm/focalnet_tiny_srf": (1 + 1 + 5 + 1, 2 * 8),
    "timm/csatv2": (1 + 1 + 7 + 5,),
    "timm/hiera_tiny_224": (0 + 1 + 6 + 1, 2 * 8),
    "timm/sam2_hiera_tiny": (0 + 1 + 6 + 1, 2 * 8),
    "timm/nest_tiny": (1 + 1 + 7, 2 * 9),
    "timm/mvitv2_tiny": (0 + 1 + 4 + 1, 2 * 6),
    "timm/pit_ti_224": (1 + 5 + 3, 2 * 9),
    "timm/pvt_v2_b0": (4, 8),
    "timm/starnet_s050": (0 + 0 + 2 + 0,),
    "timm/swin_tiny_patch4_window7_224": (1 + 1 + 5 + 1, 2 * 8),
    "timm/swinv2_tiny_window16_256": (1 + 1 + 5 + 1, 2 * 8),
    # the very last block ends in a norm: its two branches are the blocks
    "timm/swinv2_cr_tiny_224": (1 + 1 + 5 + 2, 2 + 2 + 10 + 2),
    "timm/visformer_tiny": (6 + 3 + 3, 6 + 2 * 6),
    # convolutions in the first stages, the last one relaid out from maps to tokens for its last block
    "timm/efficientformer_l1": (2 + 1 + 5 + 3,),
    # from the second stage on, downsampling is a sum in itself where attention is: depths 2 2 6 4
    "timm/efficientformerv2_s0": (1 + 2 + 6 + 4,),
    # downsampling in large and small kernels is a block: depths 2 2 4 2; the stem likewise
    "timm/fastvit_t8": (2 + 2 + 4 + 2, 2 * 10),
    # one block per convolution, attention and MLP: depths 2 2 16 6
    "timm/iformer_t": (1 + 1 + 15 + 5,),
    # downsampling ends in a residual MLP: depths 2 3 4
    "timm/levit_128s": (1 + 3 + 4,),
    # 3, 4 blocks of attention, MLP and convolution after a block that changes the shape
    "timm/lowformer_b0": (3 * 3 + 3 * 4,),
    "timm/cpubone_nano": (3 * 1 + 3 * 2,),
    # a residual stem; then 2 blocks, the first of which changes the shape; then 2 pairs after one that does
    "timm/efficientvit_b0": (0 + 1 + 1 + 4 + 4,),
    # 5 residual parts per block (1 2 3 blocks), 2 before and 2 after each change of shape
    "timm/efficientvit_m0": (5 + 2 - 1 + 2 + 10 + 2 - 1 + 2 + 15 - 1,),
    # 2 residual parts per block, 3 with attention (2 4 5 blocks), 2 before and 2 after each change of shape
    "timm/shvit_s1": (4 + 2 - 1 + 2 + 12 + 2 - 1 + 2 + 15 - 1,),
    # downsampling after a residual convolution, which has the shape of the stage before; queries from convolutions
    "timm/gcvit_xxtiny": (1 + 1 + 1 + 1 + 6 + 1 + 2,),
    # depths 2 2 5 2, each a convolution, attention in blocks and attention in a grid
    "timm/maxvit_pico_rw_256": (5 + 5 + 14 + 5, 9 + 9 + 24 + 9),
    "torchvision/maxvit_t": (5 + 5 + 14 + 5, 9 + 9 + 24 + 9),
    # stages 3 and 4 scale their shortcuts; version 1 scales none
    "timm/poolformerv2_s12": (1 + 1,),
    "timm/poolformer_s12": (1 + 1 + 5 + 1,),
    "timm/gmlp_ti16_224": (29,),
    "timm/mixer_s32_224": (7, 14),
    # convolutions after a block that changes the shape, and a wider attention block at the end
    "timm/nextvit_small": (2 + 2 + 0 + 3 + 0 + 3 + 0 + 1 + 0,),
    # inside: 2, 4 and 3 encoder layers; the block around them concatenates
    "timm/mobilevit_xxs": (0 + 2 + 1 + 3 + 2,),
    # every second block scales its features by squeeze-and-excitation before the residual part
    "timm/repvit_m1": (1 + 1 + 7 + 1,),
    # stages 2 to 4 have one shape
    "timm/sequencer2d_s": (3 + 3 + 8 + 3 - 1,),
    "timm/swiftformer_xs": (2 + 2 + 5 + 3,),
    # a convolution without shortcut stands between attention and MLP
    "timm/tiny_vit_5m_224": (1, 1 + 2 * (1 + 5 + 1)),
    # 12 blocks of two streams: only their branches go, all 5
    "timm/tnt_s_legacy_patch16_224": (5 * 11, 5 * 11),
    # depths 2 2 10 4, and a residual position encoding after the first block of each stage
    "timm/twins_svt_small": (2 + 2 + 10 + 4, 2 * 14 + 4),
    # 2 and 4 convolutions, 14 encoder layers
    "timm/vitamin_small_224": (1 + 3 + 13,),
    # 4 outlookers, 4 + 8 + 2 encoder layers of one shape, 2 blocks of the class token among the others
    "timm/volo_d1_224": (3 + 13 + 1, 2 * 17),
    # 12 blocks of three branches; those of the class token normalise it on the way
    "timm/xcit_nano_12_p8_224": (11,),
    # ResNets: depths, less the first
    "timm/resnet10t": (0,),
    "timm/resnet18": (4,),
    "timm/resnet50": (2 + 3 + 5 + 2,),
    "timm/resnetv2_18": (4,),
    "timm/res2next50": (2 + 3 + 5 + 2,),
    "timm/resnest14d": (0,),
    "timm/legacy_seresnet18": (4,),
    "timm/skresnet18": (4,),
    "timm/tresnet_m": (2 + 3 + 10 + 2,),
    "timm/regnetx_002": (0 + 0 + 3 + 6,),
    "timm/nf_regnet_b0": (0 + 2 + 5 + 5,),
    "timm/halonet_h1": (2 + 2 + 9 + 2,),
    "timm/lambda_resnet26t": (4,),
    # trees of 2, 4, 4 and 2 blocks
    "timm/dla46x_c": (1 + 3 + 3 + 1,),
    # in each branch of 2, 3 and 4 scales 2 blocks
    "timm/hrnet_w18_small": (2 + 3 + 4,),
    "timm/cs3darknet_focus_s": (0 + 2 + 3 + 0,),
    "timm/cspnext_tiny": (0,),
    "timm/hgnetv2_b0": (0 + 0 + 1 + 0,),
    "timm/inception_resnet_v2": (9 + 19 + 9,),
    "timm/legacy_xception": (8,),
    # the shortcut begins after norm and activation (`x = self.norm(x)`, then `self.stack(x) + x`): no block; 8 branches
    "timm/xception41p": (0, 8),
    # MobileNets: rows of the papers' tables, less the first block of each shape
    "timm/mobilenetv2_035": (1 + 2 + 3 + 2 + 2,),
    # 20 and 24 channels are both 24 at half width
    "timm/mobilenetv3_small_050": (1 + 4 + 2,),
    "timm/mobilenetv5_base": (2 + 4 + 15 + 14,),
    "timm/hardcorenas_b": (2 + 2 + 3 + 3 + 2,),
    "timm/ghostnet_050": (1 + 1 + 3 + 1 + 4,),
    "timm/repghostnet_050": (1 + 1 + 3 + 1 + 4,),
    # the last block alone has a shortcut
    "timm/lcnetv2_small": (1,),
    # cells concatenate six sums of two earlier cells, so they are no blocks; one of these sums adds a separable
    # convolution to its own input (`comb_iter_4_left(x_right) + x_right`), in 6 cells of each of 3 stages
    "timm/nasnetalarge": (0, 5 + 5 + 5),
    "torchvision/convnext_tiny": (2 + 2 + 8 + 2,),
    "torchvision/efficientnet_b0": (1 + 1 + 2 + 2 + 3,),
    "torchvision/mnasnet0_5": (2 + 2 + 2 + 1 + 3,),
    "torchvision/mobilenet_v2": (1 + 2 + 3 + 2 + 2,),
    "torchvision/mobilenet_v3_small": (1 + 2 + 1 + 2,),
    "torchvision/regnet_y_400mf": (0 + 2 + 5 + 5,),
    "torchvision/resnet18": (4,),
    "torchvision/swin_t": (1 + 1 + 5 + 1, 2 * 8),
    "torchvision/vit_b_16": (11, 22),
    **{
        f"transformers/{name}": (11, 22)
        for name in (
            "beit", "clip", "data2vec-vision", "deit", "dinov2", "dinov2_with_registers", "ijepa", "metaclip_2",
            "siglip", "vit", "vit_msn",
        )
    },
    "transformers/bit": (2 + 3 + 5 + 2,),
    "transformers/convnext": (2 + 2 + 8 + 2,),
    "transformers/convnextv2": (2 + 2 + 8 + 2,),
    "transformers/cvt": (0 + 1 + 9, 2 * 10),
    "transformers/donut-swin": (1 + 1 + 5 + 1, 2 * 8),
    # B7: 4 7 7 10 10 13 4
    "transformers/efficientnet": (3 + 6 + 6 + 9 + 9 + 12 + 3,),
    "transformers/focalnet": (1 + 1 + 5 + 1, 2 * 8),
    "transformers/hgnet_v2": (0 + 0 + 2 + 0,),
    "transformers/hiera": (1 + 2 + 15 + 2, 2 * 20),
    # attention and MLP are modules of their own, 4 pairs per stage; a residual MLP after each change of shape
    "transformers/levit": (7 + 8 + 8,),
    "transformers/mobilenet_v2": (1 + 2 + 3 + 2 + 2,),
    "transformers/mobilevit": (0 + 2 + 1 + 3 + 2,),
    "transformers/mobilevitv2": (0 + 1 + 1 + 3 + 2,),
    # cross-attention from the image to the latents is the first block of their stage; the decoder's is one by itself
    "transformers/perceiver": (26, 2 * 26),
    "transformers/poolformer": (1 + 1 + 5 + 1, 2 * 8),
    "transformers/pvt": (4, 8),
    "transformers/pvt_v2": (4, 8),
    "transformers/regnet": (1 + 5 + 11 + 1,),
    "transformers/resnet": (2 + 3 + 5 + 2,),
    "transformers/segformer": (4, 8),
    "transformers/swiftformer": (2 + 2 + 5 + 3,),
    "transformers/swin": (1 + 1 + 5 + 1, 2 * 8),
    "transformers/swinv2": (1 + 1 + 5 + 1, 2 * 8),
}  # fmt: skip

#: networks without a block whose shortcut is the identity, and what they have instead
WITHOUT = {
    "chains": "timm/inception_v3 timm/inception_v4 timm/vgg11 torchvision/alexnet torchvision/googlenet "
    "torchvision/inception_v3 torchvision/squeezenet1_1 torchvision/vgg11 transformers/mobilenet_v1 "
    "transformers/pp_lcnet",
    "concatenation": "timm/densenet121 timm/dpn48b timm/rdnet_tiny timm/selecsls42 torchvision/densenet121 "
    "torchvision/shufflenet_v2_x0_5 timm/ese_vovnet19b_slim_dw",
    "a shortcut for a part of the channels": "timm/rexnet_100",
    "a shortcut through a norm": "timm/mobileone_s1 transformers/textnet",
    "sums of parts that come from different cells": "timm/pnasnet5large",
    "states that go from block to block": "timm/efficientvim_m1",
}
for _names in WITHOUT.values():
    EXPECTED |= dict.fromkeys(_names.split(), (0,))

#: narrower than published, so that they run anywhere; the number of blocks stays
NARROW: dict[str, dict[str, Any]] = {
    name: {"embed_dim": 192, "num_heads": 3}
    for name in ("timm/beit_base_patch16_224", "timm/naflexvit_base_patch16_parfac_gap", "timm/samvit_base_patch16_224")
} | {
    "timm/deepseek_vit_412m": {"embed_dim": 256, "num_heads": 4},
    "timm/qwen3_vit_88m": {"embed_dim": 192, "num_heads": 3},
    "timm/gemma4_vit_167m": {"embed_dim": 192, "num_heads": 3, "intermediate_size": 768},
    "transformers/perceiver": {"d_latents": 128, "num_latents": 32},
}
NARROW_TRANSFORMERS = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}

LEFT_OUT = {
    "transformers/shieldgemma2": "a language model of 2.7 billion weights",
    "transformers/timm_wrapper": "any network of timm",
    "transformers/dinat": "needs the package natten",
    "transformers/imagegpt": "takes clusters of colours, not images",
    "transformers/siglip2": "takes patches of images of any size, not images",
}

#: sizes of images that are tried before the network's own; patches of 14 pixels fit into the last
SIZES = (64, 128, 112)
CLASSES = 10

VERSIONS = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "torchvision", "transformers"))

#: keys of what was found on scoring blocks, and branches
SCORED = ("scored", "scored_branches")

#: key of what was found -> format of the package
EXPORTS = {"export": FORMATS["torch-export"], "onnx": FORMATS["onnx"]}


def families() -> dict[str, dict[str, Callable[[], nn.Module]]]:
    """Returns the members of each family, `library/family`, each with a function that builds it."""
    found: dict[str, dict[str, Callable[[], nn.Module]]] = defaultdict(dict)
    for name in timm.list_models():
        # Those named so are made for timm's own tests.
        if not name.startswith("test_"):
            found[f"timm/{timm.models.model_entrypoint(name).__module__.rpartition('.')[2]}"][f"timm/{name}"] = (
                functools.partial(timm.create_model, name, num_classes=CLASSES, **NARROW.get(f"timm/{name}", {}))
            )
    for name in torchvision.models.list_models(module=torchvision.models):
        builder = torchvision.models.get_model_builder(name)
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        family = builder.__module__.rpartition(".")[2]
        found[f"torchvision/{family}"][f"torchvision/{name}"] = functools.partial(
            _torchvision, family, builder, num_classes=CLASSES, **options
        )
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASS_NAMES

    for name, of_class in CLASS_NAMES.items():
        found[f"transformers/{name}"][f"transformers/{name}"] = functools.partial(
            _transformer, name, of_class if isinstance(of_class, str) else of_class[0]
        )
    return dict(found)


def _torchvision(family: str, builder: Callable[..., nn.Module], *, img_size: int = 224, **options: Any) -> nn.Module:
    sizes = {"vision_transformer": {"image_size": img_size}, "maxvit": {"input_size": (img_size, img_size)}}
    return builder(**options, **sizes.get(family, {}))


def _transformer(name: str, of_class: str, img_size: int | None = None) -> nn.Module:
    config = transformers.AutoConfig.for_model(name)
    config.update({"num_labels": CLASSES} | NARROW.get(f"transformers/{name}", {}))
    for part in (config, getattr(config, "vision_config", None)):
        if img_size is not None and hasattr(part, "image_size"):
            part.image_size = img_size if isinstance(part.image_size, int) else [img_size, img_size]
        # Configurations of one width and depth; others have a list per stage.
        if getattr(part, "hidden_size", None) == 768 and hasattr(part, "intermediate_size"):
            part.update(NARROW_TRANSFORMERS)
    return getattr(transformers, of_class)(config)


def smallest(members: dict[str, Callable[[], nn.Module]]) -> str:
    """Returns the member with the fewest parameters, found without memory for them."""
    if len(members) == 1:
        return next(iter(members))
    sizes = {}
    for name, make in members.items():
        library, _, bare = name.partition("/")
        if library == "torchvision":
            sizes[name] = torchvision.models.get_model_weights(bare).DEFAULT.meta["num_params"]
            continue
        try:
            with torch.device("meta"):
                sizes[name] = sum(parameter.numel() for parameter in make().parameters())
        except (RuntimeError, NotImplementedError):
            sizes[name] = math.inf
    return min(members, key=lambda name: sizes[name])


def built(name: str, make: Callable[..., nn.Module]) -> tuple[nn.Module, int]:
    """Returns a network and the size of images that it takes: a small one where it can."""
    for size, of_size in itertools.product(SIZES, (True, False)):
        try:
            network = make(**{"img_size": size} if of_size else {}).eval()
            with torch.no_grad():
                network(torch.rand(2, 3, size, size))
        except Exception:
            # Whatever the network's own code says of another size.
            continue
        return network, size
    network = make().eval()
    return network, network.default_cfg["input_size"][-1] if name.startswith("timm/") else 224


def examine(name: str, make: Callable[..., nn.Module], say: Callable[[dict[str, Any]], None]) -> None:
    """Takes a network through all that pruning does and says what was found, step by step."""
    torch.manual_seed(0)
    network, size = built(name, make)
    images = torch.rand(2, 3, size, size)
    say({"pixels": size, "parameters": sum(parameter.numel() for parameter in network.parameters())})
    blocks = find_blocks(network, images)
    removable = candidates(blocks)
    reasons = Counter(_grouped(block.reason) for block in blocks if not block.removable)
    say({"blocks": len(blocks), "candidates": len(removable), "stays": reasons})
    branches = candidates(find_blocks(network, images, "branch"))
    say({"branches": len(branches)})
    if removable:
        say({"scored": _scored(network, removable, images)})
    if branches and len(branches) != len(removable):
        say({"scored_branches": _scored(network, branches, images)})
    if not removable:
        return
    say({"removal": _removal(network, built(name, make)[0], [removable[0], removable[-1]], images)})
    remove_blocks(network, [removable[0], removable[-1]])
    for key, form in EXPORTS.items():
        if key != "onnx" or all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
            say({key: _export(form, network, images)})


def _grouped(reason: str) -> str:
    reason = "first block of its stage" if "first block of stage" in reason else reason
    return re.sub(r"\S+\.\S+", "…", re.sub(r" \(.*", "", reason))


def _scored(network: nn.Module, blocks: list[Block], images: Tensor) -> dict[str, Any]:
    """Returns the way in which all candidates are scored, and what it costs in forward passes of the whole network."""
    # The counter looks for gradients, of which there are none here.
    network = copy.deepcopy(network).requires_grad_(False)
    counted = []
    for scored in ((), blocks):
        engine = AblationEngine(network, scored, images, memory_format=torch.contiguous_format)
        with FlopCounterMode(display=False) as counter:
            engine.representations(images)
        counted.append(counter.get_total_flops())
    return {
        "way": engine.way,
        "passes": round(counted[1] / counted[0], 1),
        "in_turn": 1 + len(blocks),
        "features": engine.features,
    }


def _removal(network: nn.Module, rebuilt: nn.Module, blocks: list[Block], images: Tensor) -> str:
    """Removes blocks from a copy of a network and loads its weights into a network built and pruned anew."""
    pruned = copy.deepcopy(network)
    remove_blocks(pruned, blocks, images)
    remove_blocks(rebuilt, [block.name for block in blocks])
    load_into(rebuilt, load(serialize(pruned, {})), "the pruned network")
    with evaluating(pruned), evaluating(rebuilt):
        same = torch.equal(logits_of(pruned(images)), logits_of(rebuilt(images)))
    return "yes" if same else "other answers"


class _Logits(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.network(x))


def _export(form: Format, network: nn.Module, images: Tensor) -> str:
    """Exports a network and runs what was written on another number of images."""
    others = torch.rand(3, *images.shape[1:])
    try:
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            exported = form.write(_Logits(network).eval(), images, Path(folder) / form.name)
            same = torch.allclose(exported(others), logits_of(network(others)), rtol=1e-3, atol=1e-4)
    except Exception as error:
        return type(error).__name__
    return "yes" if same else "other answers"


def tried(name: str, make: Callable[..., nn.Module], limit: int) -> dict[str, Any]:
    """Examines a network in a process of its own, for so many seconds of a processor at most."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_examined, args=(name, make, theirs, limit))
    process.start()
    theirs.close()
    found: dict[str, Any] = {"name": name, "error": f"more than {limit} s"}
    # A network that waits for something uses no processor.
    end = time.monotonic() + 20 * limit
    while "seconds" not in found and process.is_alive() and time.monotonic() < end:
        try:
            if ours.poll(1):
                found |= ours.recv()
        except EOFError:
            # The system has ended it: its time is over.
            break
    process.kill()
    return {"seconds": limit} | found


def _examined(name: str, make: Callable[..., nn.Module], pipe: Connection, limit: int) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    error = ""
    try:
        examine(name, make, pipe.send)
    except Exception as raised:
        error = raised.message if isinstance(raised, UserError) else f"{type(raised).__name__}: {raised}"
    pipe.send({"error": (error.splitlines() or [""])[0][:160], "seconds": round(time.process_time(), 1)})
    time.sleep(limit)


def verdict(found: dict[str, Any]) -> str:
    """Returns how what was found compares to what was counted by hand: `right`, `wrong`, or nothing."""
    expected = EXPECTED.get(found["name"])
    if expected is None:
        return ""
    counted = (found.get("candidates", 0), found.get("branches", 0))[: len(expected)]
    none_expected = expected == (0,) and "has no residual blocks" in found.get("error", "")
    return "right" if counted == expected and ("branches" in found or none_expected) else "wrong"


def row(family: str, found: dict[str, Any]) -> str:
    """Returns the line of the page for one network."""
    name = found["name"].partition("/")[2]
    stays = "; ".join(f"{count} {reason}" for reason, count in sorted(found.get("stays", {}).items()))
    cells = [
        family.partition("/")[2],
        name,
        found.get("pixels", ""),
        found.get("blocks", ""),
        found.get("candidates", ""),
        found.get("branches", ""),
        {"right": "yes", "wrong": f"no: {_shown(EXPECTED.get(found['name']))}", "": "–"}[verdict(found)],
        _shown_scoring(found),
        found.get("removal", ""),
        *(found.get(key, "") for key in EXPORTS),
        LEFT_OUT.get(found["name"]) or found.get("error") or stays,
    ]
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def _shown(expected: Iterable[int] | None) -> str:
    return ", ".join(map(str, expected or ()))


def _shown_scoring(found: dict[str, Any]) -> str:
    kinds = [found[kind] for kind in SCORED if kind in found]
    return " / ".join(f"{kind['way']} {kind['passes']} of {kind['in_turn']}" for kind in kinds)


def page(chosen: dict[str, str], results: dict[str, dict[str, Any]], limit: int) -> str:
    """Returns the page.

    Args:
        chosen: the family of each network, in the order of the rows.
        results: what was found for each.
        limit: seconds that each network had at most.
    """
    by_hand = [found for found in results.values() if verdict(found)]
    shortcuts = [found for found in by_hand if any(EXPECTED[found["name"]])]
    right = [found for found in shortcuts if verdict(found) == "right"]
    ran = [found for found in results.values() if found.get("candidates")]
    minutes = sum(found["seconds"] for found in results.values()) / 60 / 2

    def share(key: str, *values: str) -> str:
        tried_at_all = [found[key] for found in results.values() if key in found]
        right = sum((one["way"] if isinstance(one, dict) else one) in values for one in tried_at_all)
        return f"{right} of {len(tried_at_all)}"

    lines = [
        "# Which networks can be pruned",
        "",
        f"Written by `scripts/coverage.py` on {datetime.now(tz=UTC).date()} with {VERSIONS}. Of each of the "
        f"{len(set(chosen.values()))} families the smallest member, with random weights; a few others beside them. "
        f"Together they took {minutes:.0f} minutes of two processor cores (each network {limit} s at most).",
        "",
        f"- Counted by hand from the papers or the code: {len(by_hand)} networks, {len(shortcuts)} of them with blocks "
        f"that may go. **{len(right)} of these {len(shortcuts)} have exactly the candidates (and, where counted, the "
        "branches) expected**; the rule and every count are in the script. For FastViT, EfficientFormerV2, "
        "LeViT, GCViT, NASNet, RepViT, Swin V2 CR and Xception41p what counts as a block was settled from the code "
        "after the result of discovery had been seen.",
        f"- Networks with candidates: {len(ran)}. Two blocks removed, and the weights loaded into a network that was "
        f"built and pruned anew: the same answers in {share('removal', 'yes')}.",
        f"- One pass scores all blocks in {share('scored', *ONE_PASS)} networks, and all branches, where they are "
        f"others than the blocks, in {share('scored_branches', *ONE_PASS)}: nothing that lies before a candidate is "
        f"computed again for it. Forked ({share('scored', 'forked')} and {share('scored_branches', 'forked')}): the "
        f"streams of all candidates go on as one batch. Resumed ({share('scored', 'resumed')} and "
        f"{share('scored_branches', 'resumed')}): each goes on by itself from its block, where the network counts on "
        "one number of images from before its blocks until behind them, or its blocks do not lie one after the other. "
        f"In turn ({share('scored', 'in turn')} and {share('scored_branches', 'in turn')}): each candidate takes a "
        "whole pass. All give the same.",
        "- Export of the pruned network for batches of any size, with the same answers: `torch.export` in "
        f"{share('export', 'yes')}, ONNX in {share('onnx', 'yes')}.",
        "",
        "Blocks and candidates are those of `granularity=block`, branches the candidates of `granularity=branch`. "
        '"Right" compares with the count by hand (– : not counted). "One pass" is for blocks / for branches: '
        "forked 5.5 of 12 multiplies as often as 5.5 forward passes of the whole network do, where 11 candidates in "
        "turn take 12. Networks are built narrower than published where they have more than 80 million parameters (see "
        "the script).",
    ]
    if missing := [name for name in chosen if name not in results]:
        lines += ["", f"**Not tried yet** ({len(missing)}; the script goes on with them): {', '.join(missing)}."]
    for library in ("timm", "torchvision", "transformers"):
        lines += ["", f"## {library}", ""]
        lines += [
            "| family | network | pixels | blocks | candidates | branches | right | one pass | removal | export "
            "| ONNX | what stays, or why nothing runs |"
        ]
        lines += ["|" + "---|" * 12]
        names = sorted(
            (name for name in chosen if name.startswith(f"{library}/")), key=lambda name: (chosen[name], name)
        )
        lines += [row(chosen[name], results[name]) for name in names if name in results]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Examines all networks that have no line yet, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/coverage"), help="holds the lines; resumed")
    parser.add_argument("--page", type=Path, default=Path("docs/coverage.md"))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="networks whose name begins so; no page")
    parser.add_argument("--limit", type=int, default=300, metavar="SECONDS", help="per network")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    options.folder.mkdir(parents=True, exist_ok=True)
    lines, members = options.folder / "networks.jsonl", families()
    chosen = choose(members, options.folder / "smallest.json")
    makers = {name: make for family in members.values() for name, make in family.items()}
    results = found_before(lines) if lines.exists() else {}
    results |= {name: {"name": name, "seconds": 0.0} for name in LEFT_OUT}
    waiting = [name for name in chosen if name not in results]
    if options.only:
        waiting = [name for name in chosen if name.startswith(tuple(options.only)) and name not in LEFT_OUT]
    with ThreadPoolExecutor(options.processes) as pool, lines.open("a") as file:
        for done in as_completed(pool.submit(tried, name, makers[name], options.limit) for name in waiting):
            found = done.result()
            results[found["name"]] = found
            file.write(json.dumps(found | {"versions": VERSIONS}) + "\n")
            file.flush()
            print(row(chosen[found["name"]], found), f"{found['seconds']} s", flush=True)
    if not options.only:
        options.page.write_text(page(chosen, results, options.limit))


def found_before(lines: Path) -> dict[str, dict[str, Any]]:
    """Returns what was found for each network with the libraries as they are; the last line may be cut off."""
    text = lines.read_text()
    whole, _, rest = text.rpartition("\n")
    if rest:
        lines.write_text(whole + "\n" if whole else "")
    found = map(json.loads, whole.splitlines())
    return {one["name"]: one for one in found if one.get("versions") == VERSIONS}


def choose(members: dict[str, dict[str, Callable[[], nn.Module]]], cache: Path) -> dict[str, str]:
    """Returns the networks to try, with the family of each: the smallest, and those that were counted by hand."""
    known = json.loads(cache.read_text()) if cache.exists() else {}
    for family, named in members.items():
        if family not in known:
            known[family] = smallest(named)
    cache.write_text(json.dumps(known, indent=1))
    wanted = {*known.values(), *EXPECTED}
    return {name: family for family, named in members.items() for name in named if name in wanted}


if __name__ == "__main__":
    main()
