"""Criteria that know the repair: answers compared as they are, and every candidate judged with its map in place."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from consensus_cli.config.schema import PruneConfig
from consensus_cli.errors import UserError
from consensus_cli.models.resnet import resnet
from consensus_cli.pruning import bypassed, candidates, find_blocks
from consensus_cli.pruning.healing import fit_maps
from consensus_cli.pruning.replacement import REPLACEMENTS
from consensus_cli.scoring.representations import AblationEngine
from consensus_cli.scoring.score import rank_blocks


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network(images: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    made = resnet(20)
    made.train()(images)
    return made.eval()


def loader(images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(part, torch.arange(len(part)) % 4) for part in images.split(16)]


def answers(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(images).double().log_softmax(1)


def divergence(original: nn.Module, network: nn.Module, images: torch.Tensor) -> float:
    kl = functional.kl_div(answers(network, images), answers(original, images), reduction="none", log_target=True)
    return float(kl.sum(1).mean())


def test_kl_is_the_mean_divergence_of_the_answers(network: nn.Module, images: torch.Tensor) -> None:
    ranking = rank_blocks(network, loader(images), criterion="kl")
    for name, found in zip(ranking.blocks, ranking.distances["kl"], strict=True):
        with bypassed(copy.deepcopy(network), name) as ablated:
            assert found == pytest.approx(divergence(network, ablated, images), rel=1e-3)
    assert min(ranking.distances["kl"]) >= 0
    assert ranking.distances["kl"][ranking.order[0]] == min(ranking.distances["kl"])


def test_kl_compares_with_the_original(network: nn.Module, images: torch.Tensor) -> None:
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.fc.bias += torch.randn(10, generator=torch.Generator().manual_seed(3))
    ranking = rank_blocks(network, loader(images), criterion="kl", original=other)
    with bypassed(copy.deepcopy(network), ranking.blocks[0]) as ablated:
        expected = divergence(other, ablated, images)
    assert ranking.distances["kl"][0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", ["linear", "scale"])
def test_with_repair_each_block_is_judged_with_its_map_in_place(
    network: nn.Module, images: torch.Tensor, kind: str
) -> None:
    plain = rank_blocks(network, loader(images), criterion="kl")
    repaired = rank_blocks(network, loader(images), criterion="kl", repair=kind)
    fits = fit_maps(network, network, list(plain.blocks), lambda: iter(images.split(16)), kind)
    like = next(network.parameters())
    for i, name in enumerate(repaired.blocks):
        maps = {name: fits[name].module(like, branch=False)} if fits[name].helps else {}
        with bypassed(copy.deepcopy(network), name, using=maps) as ablated:
            assert repaired.distances["kl"][i] == pytest.approx(divergence(network, ablated, images), rel=1e-3)
    assert sum(repaired.distances["kl"]) < sum(plain.distances["kl"])


@pytest.mark.parametrize("granularity", ["block", "branch"])
def test_one_pass_goes_through_the_maps_as_bypassing_does(images: torch.Tensor, granularity: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, depth=3, num_classes=5).eval()
    blocks = candidates(find_blocks(vit, images[:2], granularity))
    fits = fit_maps(vit, vit, [block.name for block in blocks], lambda: iter(images.split(16)), "linear")
    assert set(fits) == {block.name for block in blocks}
    like = next(vit.parameters())
    maps = {block.name: fits[block.name].module(like, branch=block.is_branch) for block in blocks}
    engine = AblationEngine(vit, blocks, images[:4], maps=maps)
    rows = engine.representations(images[:4])
    torch.testing.assert_close(rows, engine._bypassing(images[:4]), rtol=1e-4, atol=1e-4)
    without = AblationEngine(vit, blocks, images[:4]).representations(images[:4])
    assert (rows[1:] - without[1:]).abs().amax((1, 2)).min() > 0


def test_every_metric_knows_the_repair(network: nn.Module, images: torch.Tensor) -> None:
    metrics = ["cka", "permutation", "wasserstein"]
    plain = rank_blocks(network, loader(images), metrics=metrics, bootstrap=0)
    repaired = rank_blocks(network, loader(images), metrics=metrics, repair="linear")
    for metric in metrics:
        assert repaired.distances[metric].sum() < plain.distances[metric].sum()


@pytest.mark.parametrize("wrong", [{"repair": "linaer"}, {"bootstrap": -1}])
def test_what_cannot_be_asked_for_is_refused_before_anything_runs(
    network: nn.Module, images: torch.Tensor, wrong: dict[str, Any]
) -> None:
    with pytest.raises(UserError) as error:
        rank_blocks(network, loader(images), criterion="kl", **wrong)
    assert error.value.hint


def test_the_option_offers_what_there_is() -> None:
    offered = next(field for field in fields(PruneConfig) if field.name == "replace").metadata["choices"]
    assert offered == REPLACEMENTS
