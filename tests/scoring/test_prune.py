"""Pruning with the user's own training in between."""

import copy

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from consensus_cli import prune, rank_blocks
from consensus_cli.errors import UserError
from consensus_cli.models.classifier import normalized
from consensus_cli.models.macs import count_macs
from consensus_cli.models.resnet import resnet
from consensus_cli.pruning import candidates, find_blocks, remove_blocks
from consensus_cli.pruning.replacement import ChannelMap


@pytest.fixture
def network():
    torch.manual_seed(0)
    return resnet(20).eval()


@pytest.fixture(scope="module")
def loader():
    images = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(images, torch.arange(60) % 3), 30)


def test_each_removal_follows_the_ranking_of_the_network_as_it_is_then(network, loader):
    copied, left, removed = copy.deepcopy(network), candidates(find_blocks(network, torch.rand(2, 3, 8, 8))), []
    for removal in prune(network, loader, ratio=0.5, metrics="cka"):
        assert removal.model is network
        expected = rank_blocks(copied, loader, metrics="cka", blocks=left)
        np.testing.assert_array_equal(removal.ranking.importance, expected.importance)
        assert removal.removed == (expected.least_important,)
        remove_blocks(copied, removal.removed)
        left = [block for block in left if block.name not in removal.removed]
        removed += removal.removed
        # The user's training.
        with torch.no_grad():
            for model in (network, copied):
                model.conv1.weight.mul_(1.1)
    assert len(removed) == 3
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(network(images), copied(images))


def test_several_blocks_in_one_removal_and_a_share_of_the_macs(network, loader):
    model = normalized(network, 0.5, 0.25)
    macs = count_macs(network, torch.rand(1, 3, 8, 8)).total
    removals = [removal.removed for removal in prune(model, loader, macs_ratio=0.3, step=2, criterion="last")]
    assert removals == [("layer3.2", "layer3.1"), ("layer2.2",)]
    assert count_macs(network, torch.rand(1, 3, 8, 8)).total <= 0.7 * macs


@pytest.mark.parametrize(
    ("step", "removed"), [(1, ["layer3.2", "layer3.1", "layer2.2"]), (2, ["layer3.2", "layer3.1"])]
)
def test_what_the_user_measures_can_say_when_enough_is_gone(network, loader, step, removed):
    seen = []

    def small_enough(pruned):
        assert pruned is network
        seen.append(sum(p.numel() for p in pruned.parameters()))
        return seen[-1] < 0.45 * seen[0] if step == 1 else len(seen) == 2

    removals = []
    for removal in prune(network, loader, until=small_enough, step=step, criterion="last"):
        removals.append(removal)
        # Asked before the network is handed over, so that no training has a say in it.
        assert len(seen) == len(removals) + 1
    assert [name for removal in removals for name in removal.removed] == removed
    assert seen == sorted(set(seen), reverse=True)


def test_a_network_that_is_small_enough_stays_as_it_is(network, loader):
    assert list(prune(network, loader, until=lambda _: True)) == []


def test_what_nothing_reaches_is_said_once_all_blocks_are_gone(network, loader):
    removals = prune(network, loader, until=lambda _: False, criterion="last")
    with pytest.raises(UserError, match="all 6 blocks that can go are gone"):
        list(removals)


@pytest.mark.parametrize(
    ("argument", "message", "hint"),
    [
        ({"stepp": 3}, "unknown argument of prune: 'stepp'", "did you mean 'step'"),
        ({"metric": "cka"}, "unknown argument of prune: 'metric'", "did you mean 'metrics'"),
        ({"blocks": []}, "unknown argument of prune: 'blocks'", "valid: against"),
        ({"replace": "linea"}, "unknown replacement 'linea'", "did you mean 'linear'"),
        ({"repair": "skale"}, "unknown replacement 'skale'", "did you mean 'scale'"),
    ],
)
def test_an_unknown_argument_is_refused_at_the_call(network, loader, argument, message, hint):
    with pytest.raises(UserError, match=message) as caught:
        prune(network, loader, ratio=0.5, **argument)
    assert caught.value.hint.startswith(hint)


def test_nothing_is_removed_before_the_first_removal_is_asked_for(network, loader):
    before = sum(p.numel() for p in network.parameters())
    removals = prune(network, loader, ratio=0.5, criterion="random", seed=3)
    assert sum(p.numel() for p in network.parameters()) == before
    next(removals)
    assert sum(p.numel() for p in network.parameters()) < before


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({}, "one of ratio, macs_ratio and until"),
        ({"ratio": 0.5, "macs_ratio": 0.5}, "one of ratio, macs_ratio and until"),
        ({"ratio": 0.5, "until": lambda network: True}, "one of ratio, macs_ratio and until"),
        ({"until": lambda network: True, "min_blocks_per_stage": 3}, "lets no block go"),
        ({"ratio": 1.5}, "ratio is 1.5"),
        ({"ratio": 0.5, "step": 0}, "step is 0"),
        ({"ratio": 1, "min_blocks_per_stage": 2}, "lets 3 go"),
        ({"ratio": 0.5, "granularity": "brnch"}, "unknown granularity"),
    ],
)
def test_what_cannot_be_pruned_is_refused_at_once(network, loader, words, problem):
    with pytest.raises(UserError, match=problem):
        prune(network, loader, **words)


def test_pruning_can_leave_maps_that_keep_the_answers() -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(40, 3, 8, 8), torch.arange(40) % 4
    model = resnet(20)
    model.train()(images)
    original, plain = copy.deepcopy(model.eval()), copy.deepcopy(model)
    how = {"ratio": 0.5, "criterion": "kl"}
    list(prune(model, [(images, labels)], replace="linear", repair="linear", **how))
    list(prune(plain, [(images, labels)], **how))
    assert any(isinstance(module, ChannelMap) for module in model.modules())
    with torch.no_grad():
        expected = original(images)
        assert (model(images) - expected).norm() < (plain(images) - expected).norm()


@pytest.mark.parametrize("step", [1, 2])
def test_uniform_spaces_what_goes_in_all_although_it_ranks_anew(network, loader, step):
    removals = list(prune(network, loader, ratio=0.5, step=step, criterion="uniform"))
    assert [name for removal in removals for name in removal.removed] == ["layer1.2", "layer3.2", "layer2.2"]
    assert list(removals[0].ranking.distances) == ["uniform"]
