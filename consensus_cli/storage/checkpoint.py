"""The pruned network on disk: its weights, and beside them what is needed to rebuild it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from consensus_cli.errors import UserError
from consensus_cli.models import zoo
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.spec import ModelSpec
from consensus_cli.models.weights import load_into, read_state_dict, serialize
from consensus_cli.pruning.replacement import MapForm, install_forms
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.storage.atomic import write_atomic
from consensus_cli.storage.rundir import RunDir


def save_baseline(run_dir: RunDir, original: Classifier) -> None:
    """Writes the original network (safetensors) into a run directory."""
    write_atomic(run_dir.baseline_checkpoint, serialize(original.network, {}))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the weights in a file that a run has written.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return read_state_dict(path)
    except UserError as error:
        raise UserError(
            f"the run's own file cannot be read: {error.message}", "copy it again from where the run was, or run anew"
        ) from error


def save_pruned(
    run_dir: RunDir,
    pruned: Classifier,
    spec: ModelSpec,
    in_channels: int,
    removed: Sequence[str],
    *,
    maps: Mapping[str, Mapping[str, Any]],
    classes: Sequence[str] = (),
) -> None:
    """Writes the pruned network (safetensors) and how to rebuild it (JSON) into a run directory.

    Args:
        run_dir: where to.
        pruned: the network.
        spec: how the original was built.
        in_channels: channels of the images.
        removed: names of the removed blocks.
        maps: removed block -> form of the map in its place, where there is one.
        classes: names of the classes in the order of the logits.
    """
    write_atomic(run_dir.pruned_checkpoint, serialize(pruned.network, {"removed_blocks": ";".join(removed)}))
    model = spec.construction() | {"in_channels": in_channels}
    structure = {"format": 1, "model": model, "removed_blocks": list(removed), "classes": list(classes)}
    if maps:
        structure["maps"] = dict(maps)
    write_atomic(run_dir.pruned_structure, json.dumps(structure, indent=2) + "\n")


def read_maps(run_dir: RunDir) -> dict[str, Any]:
    """Returns removed block -> form of the map in its place, of the pruned network in a run directory.

    Raises:
        UserError: its file is missing or damaged.
    """
    with _told(run_dir):
        content = json.loads(run_dir.pruned_structure.read_text(encoding="utf-8"))
        return {name: asdict(MapForm(**form)) for name, form in content.get("maps", {}).items()}


def load_pruned(run_dir: str | Path) -> Classifier:
    """Returns the pruned network of a run, in eval mode on the CPU; it takes images in [0, 1].

    Its attribute `classes` names the classes in the order of the logits; empty where an earlier version wrote the run.

    Example:
        >>> import consensus_cli, torch  # doctest: +SKIP
        >>> model = consensus_cli.load_pruned("outputs/runs/20250131T120000Z-0123abcd")  # doctest: +SKIP
        >>> logits = model(torch.rand(1, 1, 16, 16))  # doctest: +SKIP

    Raises:
        UserError: there is no such run, or its files are damaged.
    """
    files = RunDir.open(Path(run_dir))
    with _told(files):
        content = json.loads(files.pruned_structure.read_text(encoding="utf-8"))
        in_channels, removed = int(content["model"].pop("in_channels")), list(content["removed_blocks"])
        spec = ModelSpec(**content["model"])
        # Earlier versions wrote no classes; without maps there are none in the file.
        classes, maps = tuple(content.get("classes", ())), dict(content.get("maps", {}))
    model = zoo.build(spec, in_channels)
    model.classes = classes
    remove_blocks(model.network, removed)
    install_forms(model.network, maps)
    load_into(model.network, read_weights(files.pruned_checkpoint), str(files.pruned_checkpoint))
    return model.eval()


@contextmanager
def _told(files: RunDir) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"'{files.pruned_structure}' does not say how to rebuild the network: {error}",
            "the run may have stopped before its final fine-tuning; check run.log",
        ) from error
