"""A network that keeps what it computes can go on using it: nothing that runs one leaves inference tensors behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from consensus_cli.evaluation.accuracy import predict
from consensus_cli.evaluation.cost.complexity import latency_ms, peak_memory_mib
from consensus_cli.evaluation.cost.cost_comparison import forward_passes
from consensus_cli.evaluation.pair import Pair
from consensus_cli.evaluation.robustness.adversarial import adversarial_examples
from consensus_cli.evaluation.robustness.attacks import Attack
from consensus_cli.evaluation.robustness.corruption import corruption_accuracy


class Keeps(nn.Module):
    """Computes a table from its weights in the first pass in eval mode, and keeps it until it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 2)
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.kept is None:
            self.kept = torch.sigmoid(self.scale)
        return self.layer(x.flatten(1)) * self.kept


RUNS = {
    "predict": lambda network, split: predict(network, split, "cpu"),
    "latency": lambda network, _: latency_ms({"a": network}, (3, 8, 8), 2, "cpu", 0.001),
    "peak memory": lambda network, _: peak_memory_mib(network, (3, 8, 8), 2, "cpu"),
    "energy": lambda network, split: forward_passes(network, [next(split.batches(4))[0]])(),
    "corruption": lambda network, split: corruption_accuracy(
        Pair(network, network, split), ["contrast"], severities=[1]
    ),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_what_a_network_keeps_can_be_trained_and_attacked_with(run, brightness_split):
    network = Keeps().eval()
    run(network, brightness_split)
    assert network.kept is not None
    assert not network.kept.is_inference()
    images, labels = next(brightness_split.batches(20))
    adversarial_examples(network, Attack("fgsm"), images, labels)
    nn.functional.cross_entropy(network(images), labels).backward()
