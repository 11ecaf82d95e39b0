"""The one function that scores: what it takes, what it refuses, and that processes share its work."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from consensus_cli.data.share import Share
from consensus_cli.errors import UserError
from consensus_cli.models.classifier import normalized
from consensus_cli.models.resnet import resnet
from consensus_cli.pruning.blocks import candidates, find_blocks
from consensus_cli.pruning.surgery import bypassed
from consensus_cli.scoring.metrics import compute
from consensus_cli.scoring.samples import Samples
from consensus_cli.scoring.score import rank_blocks, shard
from consensus_cli.scoring.statistics.moments import PairStatistics

FAST = ("cka", "linear_alpha1", "permutation", "wasserstein")
BLOCKS = tuple(f"layer{stage}.{i}" for stage in (1, 2, 3) for i in (1, 2))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return resnet(20).eval()


@pytest.fixture(scope="module")
def images():
    return TensorDataset(torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 3)


def test_the_papers_metrics_rank_all_blocks_and_print_as_a_table(network, images):
    before = {name: weights.clone() for name, weights in network.state_dict().items()}
    ranking = rank_blocks(network.train(), DataLoader(images, 16), metrics={"cka": 1, "wasserstein": 0.5})
    assert ranking.blocks == BLOCKS
    assert ranking.passes == 1
    assert ranking.stability is None
    assert ranking.least_important == BLOCKS[ranking.order[0]]
    lines = str(ranking).splitlines()
    assert lines[0].split() == ["importance", "cka", "wasserstein"]
    assert [line.split()[0] for line in lines[2:]] == [BLOCKS[i] for i in ranking.order]
    assert network.training
    assert all(torch.equal(weights, before[name]) for name, weights in network.state_dict().items())


def test_a_shuffling_loader_and_a_generator_are_read_once(network, images):
    loader = DataLoader(images, 16, shuffle=True)
    samples = Samples.of(loader)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(samples.batches(None), samples.batches(None), strict=True))
    several = rank_blocks(network, (batch for batch in DataLoader(images, 16)), metrics=FAST, memory_gb=1e-3)
    one = rank_blocks(network, DataLoader(images, 7), metrics=FAST)
    assert one.passes == 1 < several.passes
    for name in FAST:
        np.testing.assert_allclose(several.distances[name], one.distances[name], rtol=1e-4)


def test_a_criterion_is_a_name_a_metric_or_a_function(network, images):
    loader = DataLoader(images, 30)
    assert rank_blocks(network, loader, criterion="last").least_important == BLOCKS[-1]
    assert list(rank_blocks(network, loader, criterion="cka").distances) == ["cka"]

    def middle_first(network, blocks, generator):
        return np.abs(np.arange(len(blocks)) - 3.0)

    ranking = rank_blocks(network, loader, criterion=middle_first)
    assert ranking.least_important == BLOCKS[3]
    assert list(ranking.distances) == ["middle_first"]
    with pytest.raises(UserError, match=r"criterion <lambda> gives .* for 6 blocks"):
        rank_blocks(network, loader, criterion=lambda network, blocks, generator: np.zeros(len(blocks) - 1))
    drawn = {tuple(rank_blocks(network, loader, criterion="random", removed=n).order) for n in (0, 0, 1, 2)}
    assert len(drawn) == 3


def test_a_classifier_normalizes_the_images_and_blocks_may_be_given(network, images):
    blocks = find_blocks(network, torch.rand(2, 3, 8, 8))
    plain = ((x.sub(0.5).div(0.25), y) for x, y in DataLoader(images, 60))
    expected = rank_blocks(network, plain, metrics="cka", blocks=blocks)
    ranking = rank_blocks(normalized(network, 0.5, 0.25), DataLoader(images, 60), metrics="cka", blocks=blocks[2:])
    np.testing.assert_allclose(ranking.distances["cka"], expected.distances["cka"][1:], rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet26", "vit_tiny_patch16_224"])
def test_blocks_of_a_backbone_without_a_head_are_ranked_by_its_features(name, images):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "depth": 3} if name.startswith("vit") else {"zero_init_last": False}
    backbone = timm.create_model(name, num_classes=0, **sizes).eval()
    loader, blocks = DataLoader(images, 30), candidates(find_blocks(backbone, images.tensors[0][:2]))
    ranking = rank_blocks(backbone, loader, metrics=("wasserstein",))
    with torch.no_grad():
        features = [backbone(images.tensors[0])]
        for block in blocks:
            with bypassed(backbone, block):
                features.append(backbone(images.tensors[0]))
    expected = PairStatistics(len(blocks), features[0].shape[1], 3, device=torch.device("cpu"))
    expected.update(features[0], torch.stack(features[1:]), images.tensors[1], torch.arange(60))
    np.testing.assert_allclose(
        ranking.distances["wasserstein"], compute(["wasserstein"], expected)["wasserstein"], rtol=1e-3
    )
    # One block by itself, which is not the last, is compared in the same features.
    alone = rank_blocks(backbone, loader, metrics=("wasserstein",), blocks=blocks[:1])
    np.testing.assert_allclose(alone.distances["wasserstein"][0], ranking.distances["wasserstein"][0], rtol=1e-3)


def test_against_another_network(network, images):
    same = rank_blocks(network, DataLoader(images, 60), metrics="cka", against=network)
    plain = rank_blocks(network, DataLoader(images, 60), metrics="cka")
    np.testing.assert_allclose(same.distances["cka"], plain.distances["cka"], atol=1e-6)
    other = rank_blocks(network, DataLoader(images, 60), metrics="cka", against=resnet(20))
    assert (other.distances["cka"] > plain.distances["cka"]).all()


def test_progress_and_ticks_are_reported(network, images):
    seen, ticks = [], []
    rank_blocks(
        network,
        DataLoader(images, 60),
        metrics="cka",
        tick=lambda: ticks.append(1),
        progress=lambda *said: seen.append(said),
    )
    assert seen == [("scoring", 60, 60)]
    assert ticks


@pytest.mark.parametrize(
    ("loader", "problem"),
    [
        ([], "yields no images"),
        ([{"image": torch.rand(2, 3, 8, 8)}], "does not yield pairs"),
        ([(torch.rand(2, 3, 8, 8), torch.rand(2))], "one whole number per image"),
        ([(torch.rand(2, 3, 8, 8), torch.tensor([0, -1]))], "has the label -1"),
        ([(torch.rand(2, 3, size, size), torch.zeros(2).long()) for size in (8, 9)], "differ in shape"),
    ],
)
def test_a_wrong_loader_is_refused(network, loader, problem):
    with pytest.raises(UserError, match=problem):
        rank_blocks(network, loader)


def test_too_few_samples_and_unknown_names_are_refused(network, images):
    few = [(torch.rand(6, 3, 8, 8), torch.arange(6))]
    with pytest.raises(
        UserError, match=r"'linear_alpha0' needs 10 samples, got 6; .*'gaussian_alpha0' needs 2 samples"
    ):
        rank_blocks(network, few)
    for words, problem in (
        ({"criterion": "weihgt_norm"}, "unknown criterion"),
        ({"metrics": ["kca"]}, "unknown metric"),
        ({"metrics": {"cka": 0}}, "every metric weighs 0"),
        ({"metrics": {"cka": -1}}, "the weight of metric 'cka' is -1"),
        ({"blocks": []}, "no block to rank"),
        ({"aggregation": "mean"}, "unknown aggregation"),
        ({"metrics": "cka", "precision": "fp16"}, "unknown precision"),
    ):
        with pytest.raises(UserError, match=problem):
            rank_blocks(network, DataLoader(images, 60), **words)


class Alone(Share):
    """One of two processes after the other: what rank 1 made is kept for rank 0."""

    made: ClassVar[list] = []

    def merge(self, make, combine):
        if self.leads:
            return combine([make(), *self.made])
        self.made.append(make())
        return combine(self.made)

    def agree(self, make):
        return make()


@pytest.mark.parametrize("bootstrap", [0, 3])
def test_two_processes_find_what_one_does(network, bootstrap):
    images = TensorDataset(torch.rand(230, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(230) % 3)
    samples, how = Samples.of(DataLoader(images, 50)), {"metrics": FAST, "bootstrap": bootstrap}
    Alone.made.clear()
    rank_blocks(network, samples, **how, share=Alone(1, 2))
    together, alone = rank_blocks(network, samples, **how, share=Alone(0, 2)), rank_blocks(network, samples, **how)
    for name in FAST:
        # Convolutions of another number of images round differently.
        np.testing.assert_allclose(together.distances[name], alone.distances[name], rtol=1e-4)
    if bootstrap:
        np.testing.assert_array_equal(together.stability.low, alone.stability.low)


def test_samples_are_shared_in_whole_periods_or_not_at_all():
    parts = [shard(Share(rank, 2), 112, 2) for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), torch.arange(112))
    assert len(parts[0]) % 10 == 0
    assert shard(Share(0, 2), 19, 2) is None
