"""A little of all kinds of work on one device, compared with the same on the CPU."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from consensus_cli import training
from consensus_cli.config.schema import RunConfig
from consensus_cli.data import Augmentation, ImageData
from consensus_cli.data.sampling import stratified_subset
from consensus_cli.data.split import Split
from consensus_cli.errors import (
    InterruptedRunError,
    RunFailedError,
    UserError,
)
from consensus_cli.evaluation.accuracy import accuracy_pct, predict
from consensus_cli.evaluation.cost.energy import EnergyMeter
from consensus_cli.evaluation.cost.runtime import check_onnx_installed
from consensus_cli.evaluation.pair import Pair
from consensus_cli.evaluation.robustness.adversarial import attack_accuracy
from consensus_cli.evaluation.robustness.attacks import Attack
from consensus_cli.experiment import inputs, pipeline
from consensus_cli.experiment.export import export
from consensus_cli.experiment.row import Row
from consensus_cli.models.classifier import Classifier, normalized
from consensus_cli.models.modes import alike, answer
from consensus_cli.models.resnet import resnet
from consensus_cli.pruning import find_blocks, remove_blocks
from consensus_cli.pruning.blocks import candidates
from consensus_cli.scoring.samples import Samples
from consensus_cli.scoring.score import rank_blocks
from consensus_cli.screen import Screen, events, open_screen
from consensus_cli.storage.checkpoint import load_pruned
from consensus_cli.storage.results import read_rows
from consensus_cli.storage.rundir import RESULTS_NAME, RunDir

#: the run that is tried, a few seconds long
TINY = (
    "experiment=smoke",
    "dataset=synthetic",
    "dataset.image_size=16",
    "dataset.limit_train=200",
    "dataset.limit_test=64",
    "metrics=[cka,wasserstein]",
    "metrics.samples_per_class=8",
    "baseline.epochs=1",
    "finetune=smoke",
    "attacks.images=16",
    "evaluate.energy_window_s=0.05",
    "evaluate.energy_repeats=1",
    "evaluate.latency_min_run_s=0.05",
    "evaluate.batch_sizes=[1]",
    "compile=false",
    "if_done=rerun",
)

#: largest difference of a distance from the CPU's in fp32, as a share of the metric's largest distance
BOUNDS = {"fp32": 0.002, "bf16": 0.05}

#: the same of a training loss, as a share of the CPU's in fp32
LOSS_BOUNDS = {"fp32": 0.02, "bf16": 0.1}

#: of an export, those that any network can go as
_FORMATS = ("safetensors", "torch-export", "onnx")

REPORT = "this should not happen: report it with this table"

#: seconds after which several processes are given up
_PATIENCE_S = 300

#: a check returns what it found
Check = Callable[[], str]

#: metric -> distances (c,)
Distances = Mapping[str, np.ndarray]


class Skipped(Exception):  # noqa: N818 (nothing is wrong)
    """There is nothing to check: why, and what would change that."""

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.hint = hint


class Work:
    """A little of all kinds of work on one device; what later checks compare with, or go on from, is kept.

    Args:
        config: of the run.
        device: where.
        reference: the same on the CPU; None for that one.
    """

    def __init__(self, config: RunConfig, device: torch.device, reference: Work | None = None) -> None:
        self.config, self.device, self.reference = replace(config, device=str(device)), device, reference or self
        self.trained: Classifier | None = None
        self.row: Row = {}
        self._temporary = ExitStack()

    def checks(self) -> Iterator[tuple[str, Check]]:
        """Yields the checks of this device in order."""
        with self._temporary:
            for precision in ("fp32", "bf16"):
                yield f"score in {precision}", functools.partial(self.score, precision)
            for precision in ("fp32", "bf16"):
                yield f"train in {precision}", functools.partial(self.train, precision)
            if self.device.type == "cuda":
                yield "train, compiled", functools.partial(self.train, "fp32", compiled=True)
            yield "remove blocks", self.remove
            yield "attack", self.attack
            yield "measure energy", self.measure
            yield "run, stop, resume", self.run
            yield "load_pruned", self.load
            for form in _FORMATS if self.device.type == "cpu" else ():
                yield f"export, {form}", functools.partial(self.export, form)

    @functools.cached_property
    def images(self) -> ImageData:
        """The images of the run."""
        return inputs.read_images(self.config)

    @functools.cached_property
    def distances(self) -> Distances:
        """What `score` compares with."""
        return self._scored("fp32")

    @functools.cached_property
    def loss(self) -> float:
        """What `train` compares with."""
        return self._trained("fp32")[1]

    @functools.cached_property
    def logits(self) -> Tensor:
        """What `remove` compares with."""
        return self._without_blocks()

    def score(self, precision: str) -> str:
        """Compares the distances of three blocks with those of the CPU in fp32."""
        expected, found = self.reference.distances, self._scored(precision)
        apart = {name: float(abs(found[name] - values).max() / values.max()) for name, values in expected.items()}
        # What is not a number is worse than any.
        worst = max(apart, key=lambda name: np.nan_to_num(apart[name], nan=np.inf))
        what = f"{len(found)} metrics, at worst {worst}"
        return _within(apart[worst], BOUNDS[precision], what, self.device, precision)

    def train(self, precision: str, *, compiled: bool = False) -> str:
        """Compares the loss of some updates with that of the CPU in fp32."""
        expected = self.reference.loss
        self.trained, loss = self._trained(precision, compiled=compiled)
        return _within(abs(loss / expected - 1), LOSS_BOUNDS[precision], f"loss {loss:.3f}", self.device, precision)

    def remove(self) -> str:
        """Removes two blocks, and compares the answers with those of the CPU."""
        if not alike(self._without_blocks(), self.reference.logits):
            raise RunFailedError("without two blocks, the network answers otherwise than on the CPU", REPORT)
        return "without two blocks, the network answers as on the CPU"

    def attack(self) -> str:
        """Attacks the trained network."""
        network, attacks = self.trained or self._network(), {name: Attack(name, steps=3) for name in ("fgsm", "pgd")}
        found = attack_accuracy(Pair(network, network, self.images.test, device=self.device), attacks, 32)
        stand = ", ".join(f"{name} {result['base_pct']:.0f} %" for name, result in found.items())
        return f"of 32 images right: {found['pgd']['clean_base_pct']:.0f} %, under {stand}"

    def measure(self) -> str:
        """Reads the energy of some forward passes."""
        meter = EnergyMeter(self.config.evaluate.country, device=self.device)
        if self.device.type == "cuda" and "NVML" not in meter.source:
            raise Skipped(
                "codecarbon does not see this GPU by NVML: its energy is left out", "pip install nvidia-ml-py"
            )
        network, images = self._network(), next(self.images.test.batches(64, self.device))[0]
        with meter.measure() as used:
            end_s = time.perf_counter() + 0.3
            while time.perf_counter() < end_s:
                answer(network, images)
        if not used.kwh > 0:
            raise RunFailedError(f"0 kWh in {used.duration_s:.1f} s by {meter.source}", "see docs/evaluation.md")
        return f"{1e6 * used.kwh:.2f} mWh in {used.duration_s:.1f} s, {meter.source}"

    def run(self) -> str:
        """Stops a run after its first removal, and lets it go on from what it saved."""
        folder = Path(self._temporary.enter_context(tempfile.TemporaryDirectory(prefix="consensus-doctor-")))
        config = replace(self.config, output_dir=str(folder))
        with suppress(InterruptedRunError), _Stopping(Console(quiet=True)) as screen:
            pipeline.run(config, (), screen)
        (path,) = (folder / "runs").iterdir()
        if not RunDir(path).state.is_file():
            raise RunFailedError("the run was stopped, and left nothing to resume it from", REPORT)
        with open_screen("none") as screen:
            self.row = pipeline.resume(path, screen)
        row = self.row
        return f"{row['blocks_removed']} of {row['blocks_candidates']} blocks gone, stopped and resumed after the first"

    def load(self) -> str:
        """Compares the network that the run saved with what the run measured."""
        network, test = load_pruned(self._finished()), self.images.test
        found_pct, expected_pct = (
            accuracy_pct(predict(network, test, "cpu")),
            float(str(self.row["accuracy_pruned_pct"])),
        )
        images = round(abs(found_pct - expected_pct) / 100 * len(test))
        if images > len(test) // 32:
            raise RunFailedError(
                f"{found_pct:.1f} % of {len(test)} images are right, {expected_pct:.1f} % were", REPORT
            )
        return f"{found_pct:.1f} % of {len(test)} images right, as in the run"

    def export(self, form: str) -> str:
        """Exports the network of the run."""
        path = self._finished()
        if form == "onnx":
            try:
                check_onnx_installed()
            except UserError as error:
                raise Skipped(error.message, error.hint) from error
        return str(export(path, form, None).difference)

    def _finished(self) -> Path:
        if not self.row:
            raise Skipped("needs the run above")
        return Path(str(self.row["run_dir"]))

    def _network(self) -> Classifier:
        """Returns the same small network on every device."""
        torch.manual_seed(0)
        images = self.images
        return normalized(resnet(20, len(images.classes)).to(self.device), images.mean, images.std).eval()

    def _some(self) -> Split:
        """Returns some training images, as many of every class."""
        return self.images.train.subset(stratified_subset(self.images.train.labels, 100, seed=0))

    def _example(self) -> Tensor:
        return next(self._some().batches(8, self.device))[0]

    def _scored(self, precision: str) -> Distances:
        network, samples = self._network(), Samples.of_split(self._some(), len(self.images.classes))
        blocks = candidates(find_blocks(network, self._example(), verify=False))[::2]
        return rank_blocks(network, samples, blocks=blocks, precision=precision).distances

    def _trained(self, precision: str, *, compiled: bool = False) -> tuple[Classifier, float]:
        network = self._network()
        recipe = training.Recipe(epochs=4, learning_rate=0.05, batch_size=20, schedule="cosine")
        moves = Augmentation(pad=1, flip=True)
        done = training.train(network, self._some(), recipe, augmentation=moves, precision=precision, compiled=compiled)
        return network, done.loss

    def _without_blocks(self) -> Tensor:
        network, example = self._network(), self._example()
        remove_blocks(network, candidates(find_blocks(network, example))[:2], example)
        return answer(network, example)[0].cpu()


class _Stopping(Screen):
    """Stops a run as a signal would, when its second block goes."""

    def show(self, event: events.Event) -> None:
        super().show(event)
        if isinstance(event, events.BlockRemoved) and event.number > 1:
            raise InterruptedRunError(signal.SIGTERM, Path())


def _within(apart: float, bound: float, what: str, device: torch.device, precision: str) -> str:
    """Returns how far something is from what it is on the CPU in fp32.

    Raises:
        RunFailedError: further than it may be.
    """
    text = f"{what}: {100 * apart:.2g} % off the CPU's in fp32, {100 * bound:g} % allowed"
    if not apart <= bound:
        hint = "set precision=fp32" if precision == "bf16" else f"update driver and PyTorch, or do not use {device}"
        raise RunFailedError(text, hint)
    return text


def torchrun(processes: int, device: str) -> str:
    """Has several processes make a run together.

    Raises:
        RunFailedError: they did not.
    """
    with tempfile.TemporaryDirectory(prefix="consensus-doctor-") as folder:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "consensus_cli"]
        words = ["run", "--quiet", *TINY, f"device={device}", f"output_dir={folder}"]
        done = subprocess.run(
            [sys.executable, "-m", *launcher, *words], capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
        rows = read_rows(Path(folder) / RESULTS_NAME) if done.returncode == 0 else ()
        if not len(rows):
            said = [line for line in done.stderr.splitlines() if line.startswith("error: ")] or done.stderr.splitlines()
            raise RunFailedError(
                f"torchrun ended with {done.returncode}: {' '.join(said[-1:])}", "docs/performance.md#several-processes"
            )
    return f"{processes} processes made one run"
