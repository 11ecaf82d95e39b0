"""A small vision transformer for photographs of 32×32 pixels, which learns within an hour on two cores."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class ConvStem(nn.Sequential):
    """Three strided convolutions in place of the projection of patches, with which SGD trains transformers better.

    Xiao et al. 2021, "Early convolutions help transformers see better".
    """

    def __init__(self, img_size: int = 32, patch_size: int = 8, in_chans: int = 3, embed_dim: int = 128, **_: Any):
        layers: list[nn.Module] = []
        for before, after in ((in_chans, 32), (32, 64)):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(64, embed_dim, 3, 2, 1))
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.dynamic_img_pad = False

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (n, 3, 32, 32) to tokens (n, 16, c)."""
        return super().forward(x).flatten(2).transpose(1, 2)


def small_vit(num_classes: int = 10) -> nn.Module:
    """Returns a pre-norm transformer of nine layers, 128 wide, over 16 tokens; 31 M MACs."""
    return VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=128,
        depth=9,
        num_heads=4,
        num_classes=num_classes,
        class_token=False,
        global_pool="avg",
        no_embed_class=True,
        embed_layer=ConvStem,
    )
