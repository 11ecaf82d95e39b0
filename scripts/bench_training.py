"""Times training: a plain PyTorch loop against this package's, in one process, on the same network and images.

The plain loop is what a tutorial writes: torchvision's CIFAR10, its transforms image by image, a DataLoader with
worker processes, fp32, SGD. Ours keeps the images in memory as uint8, augments them a batch at a time and trains in
bf16 autocast where the device has it. Both do random crops with 4 pixels of padding and flips. The two are timed in
turns, so that what else the machine does falls on both.

    python scripts/bench_training.py                                   # ResNet56, batch 128, random images
    python scripts/bench_training.py --cifar-root FOLDER               # the folder of cifar-10-batches-py
    python scripts/bench_training.py --model resnet110 --device cuda --compile
    python scripts/bench_training.py --model resnet50 --image-size 224 --images 2048 --device cuda
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import resource
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.split import Augmentation
from consensus_cli.evaluation.cost.complexity import complexity
from consensus_cli.models import zoo
from consensus_cli.models.spec import ModelSpec
from consensus_cli.pruning.blocks import candidates, find_blocks
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.training import Recipe, recalibrate_batch_norm, resolve_precision, train

CLASSES = 10
PAD = 4
LEARNING_RATE = 0.01
MATRIX_SIZE = 8192


class Arrays(Dataset[tuple[object, int]]):
    """Images as torchvision's datasets give them: one PIL image at a time."""

    def __init__(self, images: np.ndarray, labels: list[int], transform: Callable[[object], torch.Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(v2.functional.to_pil_image(self.images[index])), self.labels[index]


def read_images(asked: argparse.Namespace) -> tuple[np.ndarray, list[int]]:
    """Returns images (n, h, w, 3) uint8 and labels: CIFAR-10's where a folder is given, else random ones."""
    if asked.cifar_root is not None:
        cifar = CIFAR10(asked.cifar_root, train=True)
        return cifar.data[: asked.images], cifar.targets[: asked.images]
    random = np.random.default_rng(0)
    shape = (asked.images, asked.image_size, asked.image_size, 3)
    return random.integers(0, 256, shape, dtype=np.uint8), random.integers(0, CLASSES, asked.images).tolist()


def plain_loader(
    images: np.ndarray, labels: list[int], batch_size: int, *, pad: int, flip: bool, workers: int, device: torch.device
) -> DataLoader[tuple[torch.Tensor, int]]:
    """Returns shuffled batches, augmented image by image as a tutorial does it."""
    augmentations = [v2.RandomCrop(images.shape[1], padding=pad)] * (pad > 0) + [v2.RandomHorizontalFlip()] * flip
    transform = v2.Compose([*augmentations, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    return DataLoader(
        Arrays(images, labels, transform),
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )


def train_plainly(
    model: nn.Module,
    loader: DataLoader[tuple[torch.Tensor, int]],
    device: torch.device,
    rates: Sequence[float],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Trains for one update per rate of `rates`, epoch after epoch, as a tutorial does."""
    model.train()
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for rate, (images, labels) in zip(rates, epochs, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds that the work takes, on a GPU until it is done."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def build(asked: argparse.Namespace, device: torch.device) -> nn.Module:
    """Returns the network with its normalisation."""
    source = "torchvision" if asked.model == "resnet50" else "cifar_resnet"
    spec = ModelSpec(source, asked.model, num_classes=CLASSES, mean=[0.49, 0.48, 0.45], std=[0.25, 0.24, 0.26])
    torch.manual_seed(0)
    return zoo.build(spec, 3).to(device)


def one_epoch(asked: argparse.Namespace) -> Recipe:
    """Returns one epoch with the plain loop's hyperparameters."""
    return Recipe(
        epochs=1,
        learning_rate=LEARNING_RATE,
        schedule="constant",
        milestones=(),
        momentum=0.9,
        weight_decay=5e-4,
        batch_size=asked.batch_size,
        label_smoothing=0.0,
    )


def report_rate(name: str, seconds: list[float], images: int) -> float:
    """Prints images per second, median and range over the epochs, and returns the median."""
    rates = [images / s for s in seconds]
    print(f"{name}: {median(rates):.1f} images/s ({min(rates):.1f} to {max(rates):.1f}, {len(rates)} epochs)")
    return median(rates)


def matrix_rate_tflops(device: torch.device) -> float:
    """Returns the rate of a large bf16 matrix product in 10¹² floating-point operations per second."""
    a = torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device, dtype=torch.bfloat16)
    seconds = min(timed(lambda: a @ a, device) for _ in range(10))
    return 2 * MATRIX_SIZE**3 / seconds / 1e12


def memory_mib(device: torch.device) -> float:
    """Returns the peak memory so far: the GPU's, or the process's without its workers."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def prune_step(model: nn.Module, split: ImageTensors, asked: argparse.Namespace, device: torch.device) -> None:
    """Removes one block, measures batch norm anew and trains for one epoch."""
    example = model.normalize(next(split.batches(2, device))[0])
    remove_blocks(model, candidates(find_blocks(model.network, example))[-1:])
    augmentation = Augmentation(pad=PAD, flip=True)
    recalibrate_batch_norm(
        model, split, images=1024, batch_size=asked.batch_size, device=device, augmentation=augmentation, seed=0
    )
    train_ours(model, split, asked, device)


def train_ours(model: nn.Module, split: ImageTensors, asked: argparse.Namespace, device: torch.device) -> None:
    """Trains for one epoch with the package's loop."""
    train(
        model,
        split,
        one_epoch(asked),
        device=device,
        augmentation=Augmentation(pad=PAD, flip=True),
        seed=0,
        precision=resolve_precision(asked.precision, device),
        compiled=asked.compile,
    )


def profile(model: nn.Module, split: ImageTensors, asked: argparse.Namespace, device: torch.device) -> None:
    """Prints the operations of one epoch that take most of the time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        train_ours(model, split, asked, device)
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=by, row_limit=10, max_name_column_width=60))


def parse() -> argparse.Namespace:
    """Returns the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet56", help="resnet20 … resnet110 or resnet50")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--image-size", type=int, default=32, help="pixels, of random images")
    parser.add_argument("--cifar-root", help="folder of cifar-10-batches-py")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs of each way, after one to warm up")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="of the plain loop")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--profile", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Runs the benchmark."""
    asked = parse()
    device = torch.device(asked.device)
    images, labels = read_images(asked)
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(
        f"{asked.model}, {len(images)} images of {images.shape[1]} pixels, batch {asked.batch_size}, {device} ({chip})"
    )
    print(f"torch {torch.__version__}, ours in {resolve_precision(asked.precision, device)}, compiled: {asked.compile}")

    loader = plain_loader(images, labels, asked.batch_size, pad=PAD, flip=True, workers=asked.workers, device=device)
    split = ImageTensors(torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels)).to(device)
    rates = [LEARNING_RATE] * len(loader)
    plain = build(asked, device)
    optimizer = torch.optim.SGD(plain.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    ours = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(asked.epochs + 1):
        seconds["plain"].append(timed(lambda: train_plainly(plain, loader, device, rates, optimizer), device))
        seconds["ours"].append(timed(lambda: train_ours(ours, split, asked, device), device))
    used = len(images) // asked.batch_size * asked.batch_size
    slow = report_rate("plain loop", seconds["plain"][1:], used)
    fast = report_rate("ours", seconds["ours"][1:], used)
    print(f"ours / plain loop: {fast / slow:.2f}; ours, first epoch: {seconds['ours'][0]:.2f} s")
    step_s = timed(lambda: prune_step(ours, split, asked, device), device)
    print(f"one prune step (removal, batch norm, one epoch): {step_s:.2f} s")
    print(f"peak memory: {memory_mib(device):.0f} MiB")
    if device.type == "cuda":
        # Backward costs two forward passes; a MAC is two operations.
        used_tflops = fast * 6 * complexity(ours, split.image_shape).macs / 1e12
        rate = matrix_rate_tflops(device)
        print(f"arithmetic: {used_tflops:.1f} TFLOP/s, {100 * used_tflops / rate:.1f} % of bf16 products ({rate:.0f})")
    if asked.profile:
        profile(ours, split, asked, device)


if __name__ == "__main__":
    main()
