"""The exponential moving average of a network's weights while it is trained."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Tensors = tuple[Tensor, ...] | list[Tensor]


class WeightAverage:
    """Averages parameters and the running statistics of batch norm alike, so that they fit each other.

    The decay of update n is the smaller of `decay` and n / (n + 9): the first weights, which nothing has mended yet,
    lose their influence within some ten updates however slow the average is.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = self._now = decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._blend, use_buffers=True)
        # Counted on the host: the count of the average would otherwise be waited for at every update.
        self._averaged.n_averaged = self._averaged.n_averaged.cpu()

    def _blend(self, averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        get_ema_multi_avg_fn(self._now)(averaged, current, count)

    def update(self, model: nn.Module) -> None:
        """Adds the weights that the network has now."""
        update = int(self._averaged.n_averaged) + 1
        self._now = min(self._decay, update / (update + 9))
        self._averaged.update_parameters(model)

    def copy_to(self, model: nn.Module) -> None:
        """Gives the network the averaged weights and statistics."""
        model.load_state_dict(self._averaged.module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Returns the average and how many updates are in it."""
        return self._averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to an average that `state_dict` returned."""
        self._averaged.load_state_dict(state)
