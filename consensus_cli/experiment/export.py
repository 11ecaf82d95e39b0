"""The pruned network in a form that other tools load, checked on real images before it is trusted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from consensus_cli.config.composition import read_config
from consensus_cli.data.sampling import stratified_subset
from consensus_cli.errors import UserError, foreign_code, unknown_name
from consensus_cli.evaluation.cost.runtime import Forward, check_onnx_installed, onnx_forward, quiet, write_onnx
from consensus_cli.experiment import inputs
from consensus_cli.models.weights import load_into, serialize
from consensus_cli.storage.atomic import try_writing, write_atomic
from consensus_cli.storage.checkpoint import load_pruned
from consensus_cli.storage.rundir import RunDir

CHECKED_IMAGES = 64


@dataclass(frozen=True)
class Export:
    """An exported file, and how far its logits are from the network's on real test images."""

    path: Path
    images: int
    #: number of images for which both name the same class
    same_predictions: int
    #: largest difference between two logits
    max_difference: float


def export(run_dir: Path, form: str, out: Path | None) -> Export:
    """Writes the pruned network of a run as `form` and compares the file with the network on test images.

    Args:
        run_dir: a finished run.
        form: key of `FORMATS`.
        out: the file to write; None: the format's own name in the run directory.

    Raises:
        UserError: unknown format, a missing extra, no such run, a file that cannot be written, test images that are
            gone, or a network that the exporter cannot take.
    """
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)
    files, chosen = RunDir.open(run_dir), FORMATS[form]
    path = out or run_dir / chosen.name
    if form == "onnx":
        check_onnx_installed()
    _check_target(path, chosen, files)
    images = _test_images(files)
    model = load_pruned(run_dir)
    with quiet(), foreign_code(f"the export as {form}", "any network can go as safetensors"):
        run = chosen.write(model, images, path)
        with torch.no_grad():
            expected, found = model(images), run(images)
    return Export(
        path=path,
        images=len(images),
        same_predictions=int((expected.argmax(1) == found.argmax(1)).sum()),
        max_difference=(expected - found).abs().max().item(),
    )


def _check_target(path: Path, form: Format, files: RunDir) -> None:
    """Checks that a file can be written, and that it is not one of the run's own."""
    name_another = "name a file in a folder that exists: --out FILE"
    if path.is_dir():
        raise UserError(f"'{path}' is a folder", name_another)
    if not path.parent.is_dir():
        raise UserError(f"there is no folder '{path.parent}'", name_another)
    if path.resolve() in (files.pruned_checkpoint.resolve(), files.baseline_checkpoint.resolve()):
        raise UserError(f"'{path}' holds the weights that the run has saved", "name another file: --out FILE")
    suffix = Path(form.name).suffix
    if path.suffix != suffix and path.suffix in {Path(other.name).suffix for other in FORMATS.values()}:
        raise UserError(f"'{path.name}' ends like a file of another format", f"let it end in {suffix}")
    try:
        try_writing(path)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}", name_another) from error


def _test_images(run_dir: RunDir) -> Tensor:
    config = read_config(run_dir.config)
    try:
        images = inputs.read_images(config)
    except UserError as error:
        raise UserError(f"no test images to check the file with: {error.message}", error.hint) from error
    chosen = images.test.subset(stratified_subset(images.test.labels, CHECKED_IMAGES, config.seed))
    return next(chosen.batches(CHECKED_IMAGES))[0].contiguous()


def _safetensors(model: nn.Module, images: Tensor, path: Path) -> Forward:
    write_atomic(path, serialize(model, {"input": "images in [0, 1]", "shape": "x".join(map(str, images.shape[1:]))}))
    load_into(model, load_file(path), str(path))
    return model


def _torch_export(model: nn.Module, images: Tensor, path: Path) -> Forward:
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, path)
    loaded: Forward = torch.export.load(path).module()
    return loaded


def _onnx(model: nn.Module, images: Tensor, path: Path) -> Forward:
    write_onnx(model, images, path, any_batch=True)
    return onnx_forward(path)


@dataclass(frozen=True)
class Format:
    """How to write a file and return it ready to run, and its name in a run directory."""

    write: Callable[[nn.Module, Tensor, Path], Forward]
    name: str


FORMATS = {
    "safetensors": Format(_safetensors, "pruned_with_normalization.safetensors"),
    "torch-export": Format(_torch_export, "pruned.pt2"),
    "onnx": Format(_onnx, "pruned.onnx"),
}
