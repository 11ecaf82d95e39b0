"""Networks that PyTorch refuses to copy are copied."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from consensus_cli.models.copying import clone

X = torch.rand(2, 3)


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(3, 3)))


class KeepsFeatures(nn.Module):
    """Keeps what it computed, graph included, alone and in a list, as Grad-CAM code does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.fc(x)
        self.history = [self.features, {"twice": 2 * self.features}]
        return self.features


def test_a_copy_computes_with_its_own_weights() -> None:
    for network in (old_weight_norm(), KeepsFeatures(), nn.Linear(3, 3)):
        network(X)
        copied = clone(network)
        assert torch.equal(copied(X), network(X))
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.mul_(2).add_(1)
        assert not torch.equal(copied(X), network(X))
        assert not {id(parameter) for parameter in copied.parameters()} & {id(p) for p in network.parameters()}
        copied(X).sum().backward()
        assert all(parameter.grad is None for parameter in network.parameters())


def test_what_was_kept_has_its_values_and_no_graph() -> None:
    network = KeepsFeatures()
    network(X)
    copied = clone(network)
    assert torch.equal(copied.features, network.features)
    assert copied.history[0] is copied.features
    assert not copied.features.requires_grad
