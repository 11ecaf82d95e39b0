"""Times scoring: the plain way against the engine, in one process, on the same network and images.

The plain way is what the definitions say: for every metric and every candidate block a forward pass of the network
without the block, representations kept, the metric in numpy and scipy. The engine is `consensus_cli.scoring`.

    python scripts/bench_scoring.py                               # ResNet56, 2,560 images, 24 candidates: minutes
    python scripts/bench_scoring.py --images 320 --candidates 4
    python scripts/bench_scoring.py --skip-plain --device cuda
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.stats
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from consensus_cli.models.resnet import BLOCKS_PER_STAGE, resnet
from consensus_cli.pruning.blocks import Block, candidates, find_blocks
from consensus_cli.pruning.surgery import bypassed
from consensus_cli.scoring import metrics
from consensus_cli.scoring.representations import AblationEngine
from consensus_cli.scoring.statistics.moments import HOLDOUT_PERIOD, PairStatistics

CLASSES = 10
PLAIN_BATCH_SIZE = 128
ALTERNATIONS = 100


def centred(x: np.ndarray) -> np.ndarray:
    """Returns x (n, d) with zero column means."""
    return x - x.mean(axis=0)


def cka(x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> float:
    """Returns 1 − linear CKA."""
    x, y = centred(x), centred(y)
    return 1 - np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def wasserstein(x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> float:
    """Returns the distance of the two bags of values."""
    return float(scipy.stats.wasserstein_distance(x.ravel(), y.ravel()))


def angle(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the angle between two matrices in radians."""
    return float(np.arccos(np.clip(np.sum(x * y) / (np.linalg.norm(x) * np.linalg.norm(y)), -1, 1)))


def permutation(x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> float:
    """Returns the angle after the best permutation of columns."""
    x, y = centred(x), centred(y)
    _, columns = scipy.optimize.linear_sum_assignment(x.T @ y, maximize=True)
    return angle(x, y[:, columns])


def whitening(x: np.ndarray, alpha: float) -> np.ndarray:
    """Returns the regularised whitening of centred x (n, d), (d, d), that keeps its total variance."""
    values, vectors = np.linalg.eigh(x.T @ x)
    values = np.maximum(values, 1e-7)
    matrix = vectors @ np.diag(alpha + (1 - alpha) / np.sqrt(values)) @ vectors.T
    return matrix * np.linalg.norm(x) / np.linalg.norm(x @ matrix)


def linear(alpha: float) -> Callable[[np.ndarray, np.ndarray, np.ndarray], float]:
    """Returns the held-out angle after whitening and rotation."""

    def distance(x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> float:
        held_out = np.arange(len(x)) % HOLDOUT_PERIOD == HOLDOUT_PERIOD - 1
        fit_x, fit_y = x[~held_out], y[~held_out]
        white_x, white_y = whitening(centred(fit_x), alpha), whitening(centred(fit_y), alpha)
        left, _, right = np.linalg.svd((centred(fit_x) @ white_x).T @ centred(fit_y) @ white_y)
        test_x = (x[held_out] - fit_x.mean(axis=0)) @ white_x @ left
        test_y = (y[held_out] - fit_y.mean(axis=0)) @ white_y @ right.T
        return angle(test_x, test_y)

    return distance


def gaussian(alpha: float) -> Callable[[np.ndarray, np.ndarray, np.ndarray], float]:
    """Returns the class-wise distance of Gaussians after one rotation, by alternation from the means' alignment."""

    def distance(x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> float:
        means_x, means_y, roots_x, roots_y = [], [], [], []
        for label in np.unique(labels):
            for values, means, roots in ((x, means_x, roots_x), (y, means_y, roots_y)):
                rows = values[labels == label]
                means.append(rows.mean(axis=0))
                roots.append(root(np.cov(rows.T)))
        left, _, right = np.linalg.svd(np.stack(means_y).T @ np.stack(means_x))
        rotation = left @ right
        previous = np.inf
        for _ in range(ALTERNATIONS):
            cross = alpha * np.stack(means_y).T @ np.stack(means_x)
            terms = []
            for mean_x, mean_y, root_x, root_y in zip(means_x, means_y, roots_x, roots_y, strict=True):
                left, singular, right = np.linalg.svd(root_y @ rotation @ root_x)
                bures = np.sum(root_x**2) + np.sum(root_y**2) - 2 * singular.sum()
                terms.append(alpha * np.sum((mean_x - mean_y @ rotation) ** 2) + (2 - alpha) * bures)
                cross += (2 - alpha) * root_y @ left @ right @ root_x
            value = float(np.mean(terms))
            if alpha == 2 or previous - value <= 1e-8 * abs(value):
                break
            previous = value
            left, _, right = np.linalg.svd(cross)
            rotation = left @ right
        return float(np.sqrt(max(value, 0)))

    return distance


def root(covariance: np.ndarray) -> np.ndarray:
    """Returns the symmetric square root of a covariance (d, d)."""
    values, vectors = scipy.linalg.eigh(covariance)
    return vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T


PLAIN_METRICS = {
    "cka": cka,
    "linear_alpha0": linear(0),
    "linear_alpha1": linear(1),
    "permutation": permutation,
    "gaussian_alpha0": gaussian(0),
    "gaussian_alpha1": gaussian(1),
    "gaussian_alpha2": gaussian(2),
    "wasserstein": wasserstein,
}


def seconds_since(start: float, device: torch.device) -> float:
    """Returns wall-clock seconds after the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def forward(network: nn.Module, images: Tensor) -> np.ndarray:
    """Returns the inputs of `network.fc` (n, d), float64."""
    seen: list[Tensor] = []
    with network.fc.register_forward_pre_hook(lambda _m, args: seen.append(args[0])), torch.inference_mode():
        for batch in images.split(PLAIN_BATCH_SIZE):
            network(batch)
    return torch.cat(seen).double().cpu().numpy()


def plain_way(network: nn.Module, blocks: list[Block], images: Tensor, labels: Tensor) -> tuple[dict, dict[str, float]]:
    """Returns distances and seconds per part; one forward pass per metric and candidate."""
    seconds = {"forward passes": 0.0, "metrics": 0.0}
    distances = {}
    for name, metric in PLAIN_METRICS.items():
        row = []
        start = time.perf_counter()
        original = forward(network, images)
        seconds["forward passes"] += seconds_since(start, images.device)
        for block in blocks:
            start = time.perf_counter()
            with bypassed(network, block):
                ablated = forward(network, images)
            seconds["forward passes"] += seconds_since(start, images.device)
            start = time.perf_counter()
            row.append(metric(original, ablated, labels.numpy()))
            seconds["metrics"] += time.perf_counter() - start
        distances[name] = np.array(row)
    return distances, seconds


def engine_way(
    network: nn.Module, blocks: list[Block], images: Tensor, labels: Tensor, precision: str
) -> tuple[dict, dict[str, float]]:
    """Returns distances and seconds per part of the engine."""
    device = images.device
    names, labels = list(PLAIN_METRICS), labels.to(images.device)
    start = time.perf_counter()
    engine = AblationEngine(network, blocks, images[:1], precision=precision)
    seconds = {"set-up": seconds_since(start, device), "representations": 0.0, "moments": 0.0}
    keep = metrics.statistics_needed(names)
    statistics = PairStatistics(len(blocks), engine.features, CLASSES, device=device, keep=keep)
    for index in torch.arange(len(images), device=device).split(min(engine.batch_size, 2 * PLAIN_BATCH_SIZE)):
        start = time.perf_counter()
        rows = engine.representations(images[index])
        seconds["representations"] += seconds_since(start, device)
        start = time.perf_counter()
        statistics.update(rows[0], rows[1:], labels[index], index)
        seconds["moments"] += seconds_since(start, device)
    start = time.perf_counter()
    distances = metrics.compute(names, statistics)
    seconds["metrics"] = seconds_since(start, device)
    return distances, seconds


def plain_forward_seconds(network: nn.Module, images: Tensor) -> float:
    """Returns the seconds of one forward pass over all images, the fastest of three."""
    forward(network, images[:PLAIN_BATCH_SIZE])
    runs = []
    for _ in range(3):
        start = time.perf_counter()
        forward(network, images)
        runs.append(seconds_since(start, images.device))
    return min(runs)


def largest_difference(plain: dict[str, np.ndarray], engine: dict[str, np.ndarray]) -> str:
    """Returns the largest relative difference over the blocks of every metric, as a line."""
    return ", ".join(f"{name} {np.max(np.abs(engine[name] / plain[name] - 1)):.1e}" for name in plain)


def report(title: str, seconds: dict[str, float], forward_seconds: float) -> float:
    """Prints the parts of one way; returns its total seconds."""
    total = sum(seconds.values())
    parts = ", ".join(f"{part} {value:.2f} s" for part, value in seconds.items())
    print(f"{title}: {total:.2f} s = {total / forward_seconds:.1f} × one forward pass ({parts})", flush=True)
    # Linux counts ru_maxrss in KiB; it only ever grows, so the engine runs before the plain way.
    print(f"  peak memory so far: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", flush=True)
    return total


def arguments() -> argparse.Namespace:
    """Returns the sizes of the benchmark."""
    parser = argparse.ArgumentParser(description="Times scoring: the plain way against the engine.")
    parser.add_argument("--depth", type=int, default=56, choices=sorted(BLOCKS_PER_STAGE), help="of the ResNet")
    parser.add_argument("--weights", type=Path, help="safetensors of the ResNet; random weights without")
    parser.add_argument("--images", type=int, default=2560, help="random images of 32 × 32")
    parser.add_argument("--candidates", type=int, default=1000, help="score only the first so many")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip-plain", action="store_true", help="time the engine only")
    return parser.parse_args()


def main() -> None:
    """Runs the benchmark and prints it."""
    options = arguments()
    torch.manual_seed(0)
    device = torch.device(options.device)
    network = resnet(options.depth).eval()
    if options.weights is not None:
        network.load_state_dict(load_file(options.weights))
    network = network.to(device, memory_format=torch.channels_last)
    images = torch.rand(options.images, 3, 32, 32).to(device, memory_format=torch.channels_last)
    labels = torch.arange(options.images) % CLASSES
    blocks = candidates(find_blocks(network, images[:1]))[: options.candidates]
    print(
        f"ResNet{options.depth}, {len(blocks)} candidates, {len(PLAIN_METRICS)} metrics, {len(images)} images, {device}"
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    forward_seconds = plain_forward_seconds(network, images)
    print(
        f"one plain forward pass (fp32, channels_last, batch {PLAIN_BATCH_SIZE}): {forward_seconds:.2f} s", flush=True
    )
    results, totals = {}, {}
    for precision in ("fp32", "bf16"):
        results[precision], seconds = engine_way(network, blocks, images, labels, precision)
        totals[precision] = report(f"engine {precision}", seconds, forward_seconds)
    if options.skip_plain:
        return
    plain, seconds = plain_way(network, blocks, images, labels)
    plain_seconds = report("plain way", seconds, forward_seconds)
    for precision, distances in results.items():
        print(f"engine {precision}: {plain_seconds / totals[precision]:.1f} × faster than the plain way")
        print(f"  largest relative difference: {largest_difference(plain, distances)}")


if __name__ == "__main__":
    main()
