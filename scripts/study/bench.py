"""The network and the images of the study, and how a network without some blocks is judged."""

from __future__ import annotations

import copy
import tarfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from consensus_cli import data, training
from consensus_cli.data import ImageData
from consensus_cli.data.sampling import stratified_subset
from consensus_cli.data.split import Split
from consensus_cli.errors import UserError
from consensus_cli.experiment.checks import pick_device
from consensus_cli.models.classifier import Classifier, Normalize
from consensus_cli.models.resnet import resnet
from consensus_cli.models.weights import load_into, read_state_dict
from consensus_cli.pruning.blocks import Block, candidates, find_blocks
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.scoring.representations import AblationEngine
from study.plan import Plan

#: what the weights in ../shared were trained with
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH_SIZE = 256
TRAINING_BATCH_SIZE = 128
PARTS = ("selection", "report")


@dataclass
class Bench:
    """What every measurement shares.

    Attributes:
        model: the unpruned network, a `ResNet` with its normalisation.
        images: the dataset.
        parts: `selection` and `report`, which together hold every test image once.
        blocks: every residual block of the network.
        device: where the network is.
        precision: `fp32` or `bf16`, of the forward passes that measure accuracy and of the short fine-tuning.
        plan: the sizes of the study.
    """

    model: Classifier
    images: ImageData
    parts: dict[str, Split]
    blocks: list[Block]
    device: torch.device
    precision: str
    plan: Plan

    @classmethod
    def of(cls, model: Classifier, images: ImageData, plan: Plan, device: torch.device) -> Bench:
        """Divides the test images and finds the blocks."""
        model = model.to(device).to(memory_format=torch.channels_last).eval()
        with torch.no_grad():
            example = model.normalize(next(images.test.batches(2, device))[0])
        chosen = stratified_subset(images.test.labels, plan.selection_images, seed=0)
        rest = torch.ones(len(images.test), dtype=torch.bool).index_fill(0, chosen, False).nonzero().flatten()
        parts = {name: images.test.subset(index) for name, index in zip(PARTS, (chosen, rest), strict=True)}
        precision = training.resolve_precision("auto", device)
        return cls(model, images, parts, find_blocks(model.network, example), device, precision, plan)

    @property
    def candidates(self) -> list[Block]:
        """The blocks that can be removed, in the order of the network."""
        return candidates(self.blocks)

    def in_order(self, removed: Collection[str]) -> tuple[str, ...]:
        """Returns names of blocks in the order of the network."""
        return tuple(block.name for block in self.blocks if block.name in removed)

    def without(self, removed: Collection[str], treatment: str) -> Classifier:
        """Returns a copy of the network without blocks, treated by one of `TREATMENTS`."""
        model = copy.deepcopy(self.model)
        remove_blocks(model.network, self.in_order(removed))
        TREATMENTS[treatment](model, self)
        return model


def load_bench(root: Path, weights: Path, cache_dir: Path, plan: Plan, device: str) -> Bench:
    """Loads ResNet56 and the images: a folder with `train` and `test`, or one with the CIFAR-10 archive.

    Raises:
        UserError: the images or weights are missing or broken.
    """
    name = "imagefolder" if (root / "train").is_dir() else "cifar10"
    images = data.load(data.Request(name, root=str(root)), cache_dir)
    network = resnet(56)
    load_into(network, read_state_dict(weights), str(weights))
    return Bench.of(Classifier(Normalize(MEAN, STD), network), images, plan, pick_device(device))


def unpacked(archive: Path, cache_dir: Path) -> Path:
    """Returns the folder of the images in an archive of `train` and `test`, unpacked there once.

    Raises:
        UserError: there is no such archive.
    """
    folder = cache_dir / archive.name.removesuffix(".tar.xz")
    if not folder.is_dir():
        if not archive.is_file():
            raise UserError(f"no images: {archive} does not exist", "give their folder: --root DIR")
        partial = folder.with_name(f"{folder.name}.partial")
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        partial.rename(folder)
    inside = [folder, *(entry for entry in folder.iterdir() if entry.is_dir())]
    return next(entry for entry in inside if (entry / "train").is_dir())


def right_answers(
    model: Classifier, split: Split, device: torch.device, precision: str, blocks: Sequence[Block] = ()
) -> np.ndarray:
    """Returns who is right about which image, (1 + c, n) bool: the network, then the network without each of c blocks.

    The engine gives the classifier's inputs of all 1 + c networks in one pass; the classifier, a `fc` as in `ResNet`,
    does the rest in fp32.
    """
    engine, answers = None, []
    classifier = model.network.get_submodule("fc")
    for images, labels in split.batches(BATCH_SIZE, device):
        with torch.no_grad():
            normalized = model.normalize(images)
            engine = engine or AblationEngine(model.network, blocks, normalized, precision=precision)
            logits = classifier(engine.representations(normalized))
            answers.append((logits.argmax(-1) == labels).cpu().numpy())
    return np.concatenate(answers, axis=1)


def _leave(model: Classifier, bench: Bench) -> None:
    """Leaves the network as the removal made it."""


def _recalibrate(model: Classifier, bench: Bench) -> None:
    training.recalibrate_batch_norm(
        model,
        bench.images.train,
        images=bench.plan.recalibration_images,
        batch_size=TRAINING_BATCH_SIZE,
        device=bench.device,
        augmentation=bench.images.augmentation,
        seed=0,
    )


def _tune(model: Classifier, bench: Bench) -> None:
    train = bench.images.train
    recipe = training.Recipe(
        epochs=bench.plan.tuning_updates / (len(train) // TRAINING_BATCH_SIZE),
        learning_rate=0.01,
        schedule="constant",
        milestones=(),
        momentum=0.9,
        weight_decay=5e-4,
        batch_size=TRAINING_BATCH_SIZE,
        label_smoothing=0.0,
    )
    training.train(
        model,
        train,
        recipe,
        device=bench.device,
        augmentation=bench.images.augmentation,
        seed=0,
        precision=bench.precision,
    )


#: what happens to a network after its blocks are gone
TREATMENTS: dict[str, Callable[[Classifier, Bench], None]] = {
    "none": _leave,
    "recalibrated": _recalibrate,
    "tuned": _tune,
}
