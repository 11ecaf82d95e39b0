"""Residual networks for small images (He et al. 2016, "Deep Residual Learning", section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn

STAGE_CHANNELS = (16, 32, 64)

#: depth -> residual blocks per stage: depth = 6 n + 2
BLOCKS_PER_STAGE = {20: 3, 32: 5, 44: 7, 56: 9, 110: 18}


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: `relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))`.

    The shortcut is the identity, or a 1×1 convolution with batch norm where the shape changes (`downsample`).
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, c_in, h, w) to (n, c, h / stride, w / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + shortcut)


class ResNet(nn.Module):
    """ResNet for small images: 3×3 stem, three stages of basic blocks, global average pooling, linear head.

    State-dict names are torchvision's (`conv1.weight`, `layer2.0.downsample.0.weight`, `fc.weight`).

    Args:
        blocks_per_stage: residual blocks in each of the three stages (9 for ResNet56).
        num_classes: outputs of the head.
        in_channels: channels of the images.
        zero_init_residual: start the last batch norm of every block at zero, so that a fresh network is a short one
            whose blocks come in as they learn (Goyal et al. 2017); a short training then ends higher and steadier.
    """

    def __init__(
        self, blocks_per_stage: int, num_classes: int = 10, in_channels: int = 3, *, zero_init_residual: bool = False
    ) -> None:
        super().__init__()
        width = STAGE_CHANNELS[0]
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, STAGE_CHANNELS[0], blocks_per_stage, stride=1)
        self.layer2 = _stage(STAGE_CHANNELS[0], STAGE_CHANNELS[1], blocks_per_stage, stride=2)
        self.layer3 = _stage(STAGE_CHANNELS[1], STAGE_CHANNELS[2], blocks_per_stage, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(STAGE_CHANNELS[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (n, c, h, w) to logits (n, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(in_channels, channels, stride), *(BasicBlock(channels, channels) for _ in range(blocks - 1))
    )


def resnet(depth: int, num_classes: int = 10, in_channels: int = 3, *, zero_init_residual: bool = False) -> ResNet:
    """Returns the ResNet of the given depth (20, 32, 44, 56 or 110) for small images."""
    return ResNet(BLOCKS_PER_STAGE[depth], num_classes, in_channels, zero_init_residual=zero_init_residual)
