"""The pruned network in a form that other tools load, checked on real images before it is trusted."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from consensus_cli import data, preflight
from consensus_cli.checkpoint import load_pruned
from consensus_cli.composition import read_config
from consensus_cli.data.sampling import stratified_subset
from consensus_cli.errors import UserError, unknown_name
from consensus_cli.models.weights import load_into, serialize
from consensus_cli.rundir import RunDir, write_atomic

CHECKED_IMAGES = 64

#: an exported file, run on images (n, c, h, w) in [0, 1] -> logits (n, k)
Exported = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Export:
    """An exported network and how far it is from the original.

    Attributes:
        path: the file.
        images: real test images that both were run on.
        same_predictions: on how many of them both name the same class.
        max_difference: largest difference between two logits.
    """

    path: Path
    images: int
    same_predictions: int
    max_difference: float


def export(run_dir: Path, form: str, out: Path | None) -> Export:
    """Writes the pruned network of a run as `form` and compares the file with the network on test images.

    Args:
        run_dir: a finished run.
        form: key of `FORMATS`.
        out: the file to write; None: `pruned` with the format's suffix in the run directory.

    Raises:
        UserError: unknown format, no such run, a missing extra, or test images that are not there any more.
    """
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)
    model = load_pruned(run_dir)
    images = _test_images(RunDir.open(run_dir))
    write, suffix = FORMATS[form]
    path = out or run_dir / f"pruned{suffix}"
    with warnings.catch_warnings():
        # Exporters warn of their own internals; what counts is compared below.
        warnings.simplefilter("ignore")
        run = write(model, images, path)
        with torch.no_grad():
            expected, found = model(images), run(images)
    return Export(
        path=path,
        images=len(images),
        same_predictions=int((expected.argmax(1) == found.argmax(1)).sum()),
        max_difference=(expected - found).abs().max().item(),
    )


def _test_images(run_dir: RunDir) -> Tensor:
    config = read_config(run_dir.config)
    images = data.load(**preflight.dataset_arguments(config), seed=config.seed)
    chosen = images.test.subset(stratified_subset(images.test.labels, CHECKED_IMAGES, config.seed))
    return next(chosen.batches(CHECKED_IMAGES))[0].contiguous()


def _safetensors(model: nn.Module, images: Tensor, path: Path) -> Exported:
    write_atomic(path, serialize(model, {"input": "images in [0, 1]", "shape": "x".join(map(str, images.shape[1:]))}))
    load_into(model, load_file(path), str(path))
    return model


def _torch_export(model: nn.Module, images: Tensor, path: Path) -> Exported:
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, path)
    loaded: Exported = torch.export.load(path).module()
    return loaded


def _onnx(model: nn.Module, images: Tensor, path: Path) -> Exported:
    try:
        runtime = importlib.import_module("onnxruntime")
        importlib.import_module("onnxscript")
    except ImportError as error:
        raise UserError(
            f"ONNX needs a package that is not installed: {error.name}",
            "install the extra: pip install 'consensus-cli[onnx]'",
        ) from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        model,
        (images,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])


#: name -> (function that writes the file and returns it ready to run, suffix of the file)
FORMATS: dict[str, tuple[Callable[[nn.Module, Tensor, Path], Exported], str]] = {
    "safetensors": (_safetensors, "_with_normalization.safetensors"),
    "torch-export": (_torch_export, ".pt2"),
    "onnx": (_onnx, ".onnx"),
}
