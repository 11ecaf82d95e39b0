"""Trains a network from scratch by a plain PyTorch loop and by this package's, and compares where they end.

Speed that costs accuracy is none: both loops start from the same weights, see the same images with the same kind of
augmentation for the same number of updates at the same rates with the same optimizer, and are judged on the same test
images in fp32. What differs is what makes ours fast: bf16 autocast, and augmentation of whole batches.

    python scripts/bench_accuracy.py                                          # ResNet56 on the digits, three seeds
    python scripts/bench_accuracy.py --dataset imagefolder --root FOLDER --images 2560 --epochs 8 --batch-size 128
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch
from bench_training import one_epoch, plain_loader, train_plainly
from torch import Tensor, nn

from consensus_cli import data
from consensus_cli.data import ImageData
from consensus_cli.data.memory import ImageTensors
from consensus_cli.evaluation.accuracy import predict
from consensus_cli.evaluation.statistics import paired_change
from consensus_cli.models import zoo
from consensus_cli.models.spec import ModelSpec
from consensus_cli.training import Recipe, resolve_precision, train
from consensus_cli.training.recipe import build_optimizer


@dataclass(frozen=True)
class Trained:
    """One training: seconds, and whether each test image is classified correctly afterwards, (n,) bool."""

    seconds: float
    right: Tensor


def recipe_of(asked: argparse.Namespace) -> Recipe:
    """Returns the hyperparameters of both loops."""
    return replace(one_epoch(asked), epochs=asked.epochs, learning_rate=asked.learning_rate, schedule="onecycle")


def network(images: ImageData, name: str, seed: int) -> nn.Module:
    """Returns the network with fresh weights, drawn by `seed`."""
    torch.manual_seed(seed)
    spec = ModelSpec(
        "cifar_resnet", name, num_classes=len(images.classes), mean=list(images.mean), std=list(images.std)
    )
    return zoo.build(spec, images.train.image_shape[0])


def plainly(model: nn.Module, images: ImageData, asked: argparse.Namespace, device: torch.device, seed: int) -> Trained:
    """Trains by the plain loop."""
    recipe, split = recipe_of(asked), _in_memory(images)
    torch.manual_seed(seed)
    loader = plain_loader(
        split.images.permute(0, 2, 3, 1).contiguous().cpu().numpy(),
        split.labels.tolist(),
        asked.batch_size,
        pad=images.augmentation.pad,
        flip=images.augmentation.flip,
        workers=asked.workers,
        device=device,
    )
    updates = round(asked.epochs * len(loader))
    rates = [recipe.learning_rate * recipe.rate_factor(update / updates) for update in range(updates)]
    started = time.perf_counter()
    # The same decay as ours, which spares biases and norms: it is a choice of the recipe's, and costs no time.
    train_plainly(model, loader, device, rates, build_optimizer(model, recipe))
    return Trained(time.perf_counter() - started, predict(model, images.test, device).correct)


def by_ours(model: nn.Module, images: ImageData, asked: argparse.Namespace, device: torch.device, seed: int) -> Trained:
    """Trains by the package's loop."""
    model = model.to(memory_format=torch.channels_last)
    split = _in_memory(images).to(device)
    started = time.perf_counter()
    train(
        model,
        split,
        recipe_of(asked),
        device=device,
        augmentation=images.augmentation,
        seed=seed,
        precision=resolve_precision("auto", device),
    )
    return Trained(time.perf_counter() - started, predict(model, images.test, device).correct)


def _in_memory(images: ImageData) -> ImageTensors:
    if not isinstance(images.train, ImageTensors):
        raise SystemExit("the images do not fit into memory: compare on fewer (--images)")
    return images.train


def parse() -> argparse.Namespace:
    """Returns the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet56", help="resnet20 … resnet110")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--root", help="folder of the dataset")
    parser.add_argument("--image-size", type=int, help="pixels; default: the dataset's own")
    parser.add_argument("--images", type=int, help="training images at most")
    parser.add_argument("--test-images", type=int, help="test images at most")
    parser.add_argument("--epochs", type=float, default=14)
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="of the plain loop")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Runs the comparison."""
    asked = parse()
    device = torch.device(asked.device)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "consensus"
    request = data.Request(
        asked.dataset,
        root=asked.root,
        image_size=asked.image_size,
        limit_train=asked.images,
        limit_test=asked.test_images,
    )
    images = data.load(request, cache)
    print(f"{asked.model}, {asked.dataset}: {len(images.train)} training and {len(images.test)} test images")
    print(f"{asked.epochs:g} epochs in batches of {asked.batch_size}, {device}, torch {torch.__version__}")
    accuracies: dict[str, list[float]] = {"plain loop": [], "ours": []}
    for seed in (int(seed) for seed in asked.seeds.split(",")):
        start = network(images, asked.model, seed).to(device)
        plain = plainly(copy.deepcopy(start), images, asked, device, seed)
        ours = by_ours(start, images, asked, device, seed)
        told = []
        for name, trained in (("plain loop", plain), ("ours", ours)):
            accuracies[name].append(100 * float(trained.right.double().mean()))
            told.append(f"{name} {accuracies[name][-1]:.2f} % in {trained.seconds:.1f} s")
        change = paired_change(plain.right, ours.right, seed)
        interval = f"{change.ci95_low_pp:+.2f} to {change.ci95_high_pp:+.2f}"
        print(f"seed {seed}: {', '.join(told)}; ours − plain {change.delta_pp:+.2f} pp ({interval})", flush=True)
    for name, values in accuracies.items():
        print(f"{name}: mean {mean(values):.2f} % ({min(values):.2f} to {max(values):.2f}, {len(values)} seeds)")


if __name__ == "__main__":
    main()
