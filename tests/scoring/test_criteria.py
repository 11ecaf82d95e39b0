import numpy as np
import pytest
import torch
from torch import nn

from consensus_cli.errors import UserError
from consensus_cli.models.resnet import resnet
from consensus_cli.pruning.blocks import Block
from consensus_cli.scoring.ranking.criteria import CRITERIA, check_criterion

BLOCKS = [Block(f"layer{stage}.{i}", stage - 1, (16,), removable=True) for stage in (1, 2, 3) for i in (1, 2)]


def importance(name: str, network: nn.Module, blocks: list[Block] = BLOCKS, seed: int = 0) -> np.ndarray:
    return CRITERIA[name](network, blocks, np.random.default_rng(seed))


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_orders_all_blocks(name):
    values = importance(name, resnet(20))
    assert values.shape == (6,)
    assert len(np.unique(values)) == 6


def test_first_and_last():
    assert importance("first", resnet(20)).tolist() == [1, 2, 3, 4, 5, 6]
    assert importance("last", resnet(20)).tolist() == [6, 5, 4, 3, 2, 1]


def test_random_follows_the_seed():
    draws = {tuple(importance("random", resnet(20), seed=seed)) for seed in range(5)}
    assert tuple(importance("random", resnet(20), seed=3)) in draws
    assert len(draws) > 1
    assert all(sorted(draw) == [1, 2, 3, 4, 5, 6] for draw in draws)


def test_random_puts_every_block_first_about_equally_often():
    generator = np.random.default_rng(0)
    network = resnet(20)
    firsts = [np.argmin(CRITERIA["random"](network, BLOCKS, generator)) for _ in range(600)]
    assert (np.bincount(firsts, minlength=6) > 60).all()


def test_weight_norm_is_the_mean_l1_norm_of_filters():
    network = nn.ModuleDict({"a": nn.Conv2d(2, 3, 3), "b": nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))})
    for parameter in network.parameters():
        nn.init.constant_(parameter, 100.0)
    nn.init.constant_(network["a"].weight, -0.5)
    nn.init.constant_(network["b"][0].weight, 0.25)
    blocks = [Block(name, 0, (), removable=True) for name in "ab"]
    # A filter of `a` holds 2 · 3 · 3 weights of 0.5, a row of `b` 4 of 0.25; biases and batch norm do not count.
    assert importance("weight_norm", network, blocks).tolist() == [9.0, 1.0]


def test_weight_norm_of_a_branch_is_that_of_its_modules():
    encoder = nn.ModuleDict({"norm": nn.LayerNorm(4), "mlp": nn.Linear(4, 2), "attention": nn.Linear(4, 4)})
    nn.init.constant_(encoder["mlp"].weight, 0.25)
    network = nn.ModuleDict({"encoder": encoder})
    assert importance("weight_norm", network, [Block("encoder+norm+mlp", 0, (), removable=True)]).tolist() == [1.0]


def test_weight_norm_finds_the_block_with_small_weights():
    torch.manual_seed(0)
    network = resnet(20)
    with torch.no_grad():
        for parameter in network.layer2[2].parameters():
            parameter.mul_(0.1)
    assert np.argmin(importance("weight_norm", network)) == 3


def test_weight_norm_of_blocks_without_filters_is_refused():
    parts = {f"relu{i}": nn.ReLU() for i in range(7)} | {"norm": nn.BatchNorm2d(4), "conv": nn.Conv2d(4, 4, 1)}
    network = nn.ModuleDict(parts)
    blocks = [Block(name, 0, (), removable=True) for name in parts]
    with pytest.raises(UserError) as raised:
        check_criterion("weight_norm", network, blocks)
    assert raised.value.message == (
        "criterion=weight_norm compares weights; 8 of 9 candidates have none: "
        "relu0, relu1, relu2, relu3, relu4 and 3 more"
    )
    with pytest.raises(UserError, match=r"1 of 1 candidates have none: norm$"):
        check_criterion("weight_norm", network, [Block("norm", 0, (), removable=True)])
    for criterion in ("first", "random", "consensus", "cka"):
        check_criterion(criterion, network, blocks)
    check_criterion("weight_norm", resnet(20), BLOCKS)


def test_uniform_alone_spreads_over_the_depth():
    names = [BLOCKS[i].name for i in np.argsort(importance("uniform", resnet(20)))]
    assert names == ["layer1.1", "layer3.1", "layer2.1", "layer1.2", "layer3.2", "layer2.2"]
