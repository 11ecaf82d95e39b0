"""Networks whose cost is hard to count. All take (n, c, h, w) of any size, one channel, and return (n, 10)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 4


class Network(nn.Module):
    """Spreads the image over channels, adds blocks to it, and averages."""

    def __init__(self, block: type[nn.Module], depth: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.scale = nn.Parameter(torch.randn(WIDTH, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1, keepdim=True).repeat(1, WIDTH, 1, 1)
        for block in self.blocks:
            x = x + block(x)
        return (x.mean((2, 3))[:, :, None] * self.scale).sum(1)


class Frequencies(nn.Module):
    """Multiplies frequencies by numbers of its own: no product that has a formula."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.rand(WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * self.filter, s=x.shape[-2:])


class SamePadding(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH, 3, padding="same", bias=False)


class Rows(nn.Module):
    """An LSTM along each row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1)  # (n, h, w, c)
        return self.lstm(rows.flatten(0, 1))[0].view(rows.shape).permute(0, 3, 1, 2)


class Scales(nn.Module):
    """A block without any matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(WIDTH, 1, 1).squeeze())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[:, None, None]


class FrequencyNetwork(Network):
    def __init__(self) -> None:
        super().__init__(Frequencies)


class SameNetwork(Network):
    def __init__(self) -> None:
        super().__init__(SamePadding)


class RowNetwork(Network):
    def __init__(self) -> None:
        super().__init__(Rows)


class ScaleNetwork(Network):
    def __init__(self) -> None:
        super().__init__(Scales)
