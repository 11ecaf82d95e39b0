"""Shortcut reliance: how far a network follows a planted cue instead of what the image shows.

The protocol. A cue is a mark that stands for a class. It is planted in a share ρ of the training images, always the
cue of the image's own class. The trained network is then tested three times on the same test images: with the cue
of their own class (aligned), with none (absent), and with the cue of another class (conflict).
`shortcut_reliance_pp` is aligned minus conflict accuracy: 0 for a network that ignores cues, 100 for one that reads
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.request import Cue
from consensus_cli.data.sampling import stratified_split
from consensus_cli.data.share import ALL, Share
from consensus_cli.errors import UserError
from consensus_cli.evaluation.accuracy import Predictions, accuracy_pct, predict
from consensus_cli.evaluation.pair import Columns, Pair
from consensus_cli.evaluation.statistics import paired_change


def shortcut_columns(pair: Pair, test: ImageTensors, cue: Cue, classes: int) -> Columns:
    """Returns what `shortcut_reliance` measures of both networks, which tell so many classes apart."""
    columns: Columns = {}
    for name, model in pair.networks.items():
        found = shortcut_reliance(model, test, cue, classes, seed=pair.seed, device=pair.device, share=pair.share)
        columns |= {f"shortcut_{cue.kind}_{end.format(name)}": value for end, value in found.items()}
    return columns


def plant_training_cue(split: ImageTensors, cue: Cue, classes: int, seed: int) -> ImageTensors:
    """Plants the cue of its own class in the share `cue.correlation` (ρ) of every class's images, drawn by seed."""
    chosen, _ = stratified_split(split.labels, (cue.correlation, 1 - cue.correlation), seed)
    images = split.images.clone()
    images[chosen] = plant(images[chosen], split.labels[chosen], cue, classes)
    return ImageTensors(images, split.labels)


def plant(images: Tensor, marked_as: Tensor, cue: Cue, classes: int) -> Tensor:
    """Returns images (n, c, h, w) uint8, each with the cue of the class (n,), of so many, that it is marked as."""
    marked = MARKS[str(cue.kind)](images.float(), marked_as.to(images.device), cue.size_pct, classes)
    return marked.round().clamp(0, 255).to(torch.uint8)


def shortcut_reliance(
    model: nn.Module,
    split: ImageTensors,
    cue: Cue,
    classes: int,
    *,
    seed: int,
    device: torch.device | str,
    share: Share = ALL,
) -> dict[str, float]:
    """Tests a network on the same images with the cue aligned, absent and in conflict with the label.

    The seed decides which wrong class each image is marked as, and the interval.

    Returns:
        By ends of columns, `{}` being the network: `{}_pp` is aligned minus conflict accuracy (0: it ignores the cue),
        with a 95 % interval; accuracy with the cue of the image's own class, `aligned_{}_pct`, without cue,
        `absent_{}_pct`, and with that of another class, `conflict_{}_pct`; the share of images in conflict that are
        given the class of the cue, `followed_{}_pct`.

    Raises:
        UserError: if there are fewer than two classes.
    """
    other = conflicting_labels(split.labels, classes, seed)

    def answers(marked_as: Tensor | None) -> Predictions:
        images = split.images if marked_as is None else plant(split.images, marked_as, cue, classes)
        return predict(model, ImageTensors(images, split.labels), device, share=share)

    aligned, absent, conflict = answers(split.labels), answers(None), answers(other)
    change = paired_change(conflict.correct, aligned.correct, seed)
    return {
        "{}_pp": change.delta_pp,
        "{}_ci95_low": change.ci95_low_pp,
        "{}_ci95_high": change.ci95_high_pp,
        "aligned_{}_pct": accuracy_pct(aligned),
        "absent_{}_pct": accuracy_pct(absent),
        "conflict_{}_pct": accuracy_pct(conflict),
        "followed_{}_pct": accuracy_pct(Predictions(conflict.logits, other)),
    }


def conflicting_labels(labels: Tensor, classes: int, seed: int) -> Tensor:
    """Draws for every image a class that is not its own, all equally likely, (n,) int64.

    Raises:
        UserError: if there are fewer than two classes.
    """
    if classes < 2:
        raise UserError(f"no cue can conflict among {classes} classes", "use a dataset with at least 2 classes")
    offset = torch.randint(1, classes, labels.shape, generator=torch.Generator().manual_seed(seed))
    return (labels + offset) % classes


def _patch(images: Tensor, marked_as: Tensor, size_pct: float, classes: int) -> Tensor:
    side = max(1, round(size_pct / 100 * min(images.shape[-2:])))
    marked = images.clone()
    marked[:, :, :side, :side] = _colours(classes, images)[marked_as]
    return marked


def _tint(images: Tensor, marked_as: Tensor, size_pct: float, classes: int) -> Tensor:
    return images.lerp(_colours(classes, images)[marked_as], size_pct / 100)


def _watermark(images: Tensor, marked_as: Tensor, size_pct: float, classes: int) -> Tensor:
    """Mixes in stripes: each class has its own direction and width, so that grey images can carry it too."""
    height, width = images.shape[-2:]
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width)
    angle = torch.arange(classes).view(-1, 1, 1) * torch.pi / classes
    phase = 2 * torch.pi * (rows * angle.sin() + columns * angle.cos()) / 4  # four pixels to a wave
    stripes = 127.5 + 127.5 * phase.cos()  # (classes, h, w)
    return images.lerp(stripes.to(images.device)[marked_as].unsqueeze(1).expand_as(images), size_pct / 100)


def _colours(classes: int, images: Tensor) -> Tensor:
    """Returns a colour per class, (classes, c, 1, 1) in [0, 255]: evenly spaced hues, or greys for one channel."""
    channels = images.shape[1]
    step = torch.arange(classes) / classes
    if channels == 1:
        colours = 255 * torch.arange(classes).view(-1, 1) / max(1, classes - 1)
    else:
        shift = torch.arange(channels) / channels
        colours = 127.5 + 127.5 * torch.cos(2 * torch.pi * (step.view(-1, 1) - shift))
    return colours.view(classes, channels, 1, 1).to(images.device)


#: kind of cue -> (images (n, c, h, w) in [0, 255], class of each mark (n,), size in %, classes) -> images with marks
MARKS: dict[str, Callable[[Tensor, Tensor, float, int], Tensor]] = {
    "patch": _patch,
    "tint": _tint,
    "watermark": _watermark,
}
