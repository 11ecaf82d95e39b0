"""The common corruptions of photographs, each at five severities.

After Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
with the severities of their CIFAR-10-C. Lengths in pixels are given for 32 pixels and grow with the image. These are
our own images: accuracies are close to those on the published archives, not equal to them.

A distortion maps images (b, c, h, w) float32 in [0, 1], a severity from 1 to 5 and a CPU generator to images of
the same shape; the caller clamps and rounds them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Distortion = Callable[[Tensor, int, torch.Generator], Tensor]

SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Adds normal noise."""
    deviation = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    return images + deviation * _normal(images, generator)


def shot_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Replaces each value by a photon count with that mean."""
    photons = (500, 250, 100, 75, 50)[severity - 1]
    return (torch.poisson(images.clamp(0, 1).cpu() * photons, generator) / photons).to(images.device)


def impulse_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Sets a share of the values to 0 or 1 (salt and pepper)."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    draw = torch.rand(images.shape, generator=generator).to(images.device)
    return images.masked_fill(draw < share / 2, 0.0).masked_fill(draw > 1 - share / 2, 1.0)


def defocus_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Spreads each pixel over a disk, as a lens out of focus does, with a softened rim."""
    radius, rim = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[severity - 1]
    radius *= _scale(images)
    reach = math.ceil(radius)
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).to(images.dtype)
    blurred = _convolve(images, (disk / disk.sum()).expand(len(images), -1, -1))
    return _smooth(blurred, rim * _scale(images))


def motion_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Smears each image along a line of its own, at most 45 degrees from the horizontal."""
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[severity - 1]
    reach = math.ceil(radius * _scale(images))
    along = torch.arange(0, reach + 1)
    weight = torch.exp(-0.5 * (along / (sigma * _scale(images))) ** 2)
    angle = (torch.rand(len(images), 1, generator=generator) - 0.5) * math.pi / 2
    rows = (along * angle.sin()).round().long() + reach  # (b, reach + 1)
    columns = (along * angle.cos()).round().long() + reach
    kernel = torch.zeros(len(images), 2 * reach + 1, 2 * reach + 1)
    batch = torch.arange(len(images))[:, None].expand_as(rows)
    kernel.index_put_((batch, rows, columns), (weight / weight.sum()).expand(rows.shape), accumulate=True)
    return _convolve(images, kernel.to(images.device))


def gaussian_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Smooths with a normal kernel."""
    return _smooth(images, (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1] * _scale(images))


def brightness(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Raises the value (largest channel) of each pixel and keeps hue and saturation."""
    amount = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    value = images.amax(1, keepdim=True)
    raised = (value + amount).clamp(max=1)
    return torch.where(value > 0, images * raised / value.clamp(min=1e-6), raised)


def contrast(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Pulls each channel towards its mean over the image."""
    share = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    mean = images.mean((2, 3), keepdim=True)
    return mean + share * (images - mean)


def fog(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Lays a cloud over the image: random waves whose height falls by `decay` from octave to octave."""
    amount, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[severity - 1]
    count, _, height, width = images.shape
    waves = torch.fft.rfft2(torch.randn(count, 1, height, width, generator=generator))
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width))
    frequency[0, 0] = 1.0
    # An octave holds four times as many waves as the one below it, hence the 1 besides log2(decay).
    clouds = torch.fft.irfft2(waves * frequency ** -(1 + math.log2(decay)), s=(height, width))
    low, high = clouds.amin((2, 3), keepdim=True), clouds.amax((2, 3), keepdim=True)
    clouds = ((clouds - low) / (high - low)).to(images.device)
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + amount * clouds) * brightest / (brightest + amount)


def jpeg(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Compresses as a JPEG file of low quality."""
    from torchvision.transforms.v2 import functional as tvf

    quality = (80, 65, 58, 50, 40)[severity - 1]
    pixels = (255 * images).round().clamp(0, 255).to("cpu", torch.uint8)
    return tvf.jpeg(pixels.contiguous(), quality).to(images.device, images.dtype) / 255


def pixelate(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Shrinks by averaging and enlarges again without smoothing."""
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    height, width = images.shape[-2:]
    small = functional.interpolate(images, size=(int(share * height), int(share * width)), mode="area")
    return functional.interpolate(small, size=(height, width), mode="nearest")


DISTORTIONS: dict[str, Distortion] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "motion_blur": motion_blur,
    "gaussian_blur": gaussian_blur,
    "brightness": brightness,
    "contrast": contrast,
    "fog": fog,
    "jpeg_compression": jpeg,
    "pixelate": pixelate,
}


def distort(images: Tensor, name: str, severity: int, generator: torch.Generator) -> Tensor:
    """Distorts images and rounds them to the 256 levels that an image file has.

    Args:
        images: (b, c, h, w) float32 in [0, 1].
        name: key in `DISTORTIONS`.
        severity: from 1 (mild) to 5.
        generator: on the CPU; draws whatever is random.
    """
    distorted = DISTORTIONS[name](images, severity, generator)
    return (255 * distorted.clamp(0, 1)).round() / 255


def _normal(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(images.shape, generator=generator).to(images.device)


def _scale(images: Tensor) -> float:
    return min(images.shape[-2:]) / 32


def _smooth(images: Tensor, sigma: float) -> Tensor:
    reach = max(1, math.ceil(4 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    weight = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = weight[:, None] * weight
    return _convolve(images, (kernel / kernel.sum()).expand(len(images), -1, -1))


def _convolve(images: Tensor, kernels: Tensor) -> Tensor:
    """Filters every image with a kernel of its own.

    Args:
        images: (b, c, h, w).
        kernels: (b, k, k), k odd.
    """
    count, channels, height, width = images.shape
    reach = kernels.shape[-1] // 2
    padded = functional.pad(images, [reach] * 4, mode="replicate").reshape(1, count * channels, height + 2 * reach, -1)
    weight = kernels.repeat_interleave(channels, 0).unsqueeze(1)  # (b · c, 1, k, k)
    return functional.conv2d(padded, weight, groups=count * channels).view(count, channels, height, width)
