"""What stands where a block stood: nothing but its shortcut, or a map with few parameters that does some of its work.

A map of a whole block is `y = activation(W x + b)`, fitted near the identity; the map of a branch is the `W x + b` that
is added in the branch's place. `linear` mixes channels, per pixel or token; `scale` has one factor per channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from consensus_cli.errors import unknown_name
from consensus_cli.pruning.surgery import Shortcut, parts_of, put_in_place

#: what can stand where a block stood
REPLACEMENTS = ("nothing", "scale", "linear")


def check_replacement(kind: str) -> None:
    """Checks that something can stand where a block stood. Raises UserError."""
    if kind not in REPLACEMENTS:
        raise unknown_name("replacement", kind, REPLACEMENTS)


@dataclass(frozen=True)
class MapForm:
    """All of a map but its numbers, in plain values that a checkpoint can hold.

    Attributes:
        kind: `linear` or `scale`.
        channels: number of channels.
        axis: where the channels are: 1 for maps (n, c, h, w), −1 for tokens (n, t, c).
        low, high: what the activation behind the addition clamps to (ReLU: 0 and None); both None without one.
    """

    kind: str
    channels: int
    axis: int
    low: float | None = None
    high: float | None = None


class ChannelMap(Shortcut):
    """Maps the channels of its first tensor: `clamp(W x + b)`.

    Attributes:
        form: all of it but the numbers.
        weight: W, (c, c), or (c,) for a factor per channel.
        bias: b, (c,).
    """

    def __init__(self, form: MapForm) -> None:
        super().__init__()
        self.form = form
        linear = form.kind == "linear"
        self.weight = nn.Parameter(torch.eye(form.channels) if linear else torch.ones(form.channels))
        self.bias = nn.Parameter(torch.zeros(form.channels))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Maps the first tensor among the arguments to one of the same shape."""
        x, form = super().forward(*args, **kwargs), self.form
        last = form.axis == -1
        if form.kind == "scale":
            shape = (-1,) if last else (-1, *(1,) * (x.ndim - 2))
            y = x * self.weight.view(shape) + self.bias.view(shape)
        elif last:
            y = functional.linear(x, self.weight, self.bias)
        elif x.ndim == 4:
            y = functional.conv2d(x, self.weight[:, :, None, None], self.bias)
        else:
            y = functional.linear(x.movedim(1, -1), self.weight, self.bias).movedim(-1, 1)
        return y if form.low is None and form.high is None else y.clamp(form.low, form.high)

    @classmethod
    def fitted(cls, form: MapForm, weight: Tensor, bias: Tensor, like: Tensor) -> ChannelMap:
        """Returns a map with these numbers, in the type and on the device of `like`."""
        made = cls(form).to(like)
        with torch.no_grad():
            made.weight.copy_(weight)
            made.bias.copy_(bias)
        return made


def forms_of(network: nn.Module, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns block name -> form, as `asdict(MapForm)`, of the maps that stand where blocks stood."""
    # In place of a branch it is the first part that maps; around it may be what picks tokens or makes a tuple.
    standing = ((name, module) for name in names for module in network.get_submodule(parts_of(name)[0]).modules())
    return {name: asdict(module.form) for name, module in standing if isinstance(module, ChannelMap)}


def install_forms(network: nn.Module, forms: Mapping[str, Mapping[str, Any]]) -> None:
    """Puts identity maps where blocks stood, so that a saved state dict fits; forms as `asdict(MapForm)`."""
    like = next(network.parameters())
    for name, form in forms.items():
        put_in_place(network, name, ChannelMap(MapForm(**form)).to(like))
