"""The pruned network in a form that other tools load, checked on real images before it is trusted."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from consensus_cli.config.composition import read_config
from consensus_cli.config.schema import EvaluateConfig, RunConfig
from consensus_cli.data.datasets import resize_size
from consensus_cli.errors import RunFailedError, UserError, foreign_code, unknown_name
from consensus_cli.evaluation.cost.runtime import Forward, check_onnx_installed, onnx_forward, quiet, write_onnx
from consensus_cli.evaluation.cost.savings import time_in_turn
from consensus_cli.evaluation.statistics import paired_saving, readings_needed
from consensus_cli.experiment import certificate, inputs
from consensus_cli.experiment.certificate import Difference, checked_images, difference
from consensus_cli.models import hf, zoo
from consensus_cli.models.classifier import Classifier, Normalize
from consensus_cli.models.modes import SAME, alike
from consensus_cli.models.stock import as_stock, not_stock
from consensus_cli.models.weights import load_into, serialize
from consensus_cli.storage.atomic import try_writing, write_atomic
from consensus_cli.storage.certificate import add_export
from consensus_cli.storage.checkpoint import load_pruned, read_weights
from consensus_cli.storage.rundir import RunDir

#: of a stock network: how far its logits may be from the pruned network's, relative to the largest
SAME_ANSWER = 1e-5


@dataclass(frozen=True)
class Export:
    """An exported file, and how far its logits are from the network's on real test images."""

    path: Path
    #: a line of Python that loads it without this package; empty where that takes more
    loads: str
    difference: Difference
    #: forward passes of it and of the original, exported alike and run in turn; empty where they are not timed
    latency: list[dict[str, Any]]


def export(run_dir: Path, form: str, out: Path | None, batch: int | None = None) -> Export:
    """Writes the pruned network of a run as `form` and compares the file with the network on test images.

    Args:
        run_dir: a finished run.
        form: key of `FORMATS`.
        out: the file to write; None: the format's own name in the run directory.
        batch: images per forward pass that it takes; None: any number.

    Raises:
        UserError: unknown format, one that is not for a number of images, a missing extra, no such run, a file that
            cannot be written, test images that are gone, or a network that the exporter cannot take.
        RunFailedError: what was written does not answer as the network.
    """
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)
    files, chosen = RunDir.open(run_dir), FORMATS[form]
    path = out or run_dir / chosen.name
    if batch is not None and not chosen.fixed:
        forms = ", ".join(name for name, other in FORMATS.items() if other.fixed)
        raise UserError(f"{form} takes batches of any size: --batch is not for it", f"it is for --format {forms}")
    if form == "onnx":
        check_onnx_installed()
    if form == "timm":
        _check_timm()
    _check_target(path, chosen, files)
    config, model = read_config(files.config), load_pruned(run_dir)
    config = replace(config, dataset=inputs.transfer_request(config) or config.dataset)
    going = as_stock(model, form) if chosen.holds else model
    images = _test_images(config)
    with quiet(), foreign_code(f"the export as {form}", "any network can go as safetensors"):
        with torch.no_grad():
            expected = model(images)
            if chosen.holds and not alike(going(images), expected, SAME_ANSWER):
                raise not_stock("its blocks compute something else at another place, as those with shifted windows do")
        sizes = {"resize_size": resize_size(config.dataset, images.shape[-1])} if chosen.holds else {}
        run = _written(chosen, going, images, path, batch, **sizes)
        with torch.no_grad():
            found = run(images)
        latency = _against(_original(files, model), run, images, batch, config.evaluate) if form == "onnx" else []
    loads = chosen.loads(path) if chosen.loads else ""
    done = Export(path, loads, difference(expected, found, relative=SAME), latency)
    measured = {"runtime": "onnxruntime", "threads": torch.get_num_threads(), "latency": latency} if latency else {}
    entry = {"path": str(path), "batch": batch or "dynamic", **asdict(done.difference), **measured}
    add_export(files, f"{form}, batch {batch}" if batch else form, entry)
    if not done.difference.is_same:
        raise RunFailedError(
            f"'{path}' does not answer as the pruned network: {done.difference}",
            "the file is kept to look at; any network can go as --format safetensors",
        )
    return done


def _written(form: Format, model: nn.Module, images: Tensor, path: Path, batch: int | None, **sizes: int) -> Forward:
    """Writes a network and returns it as loaded again, for any number of images (n, c, h, w)."""
    if batch is None or form.fixed is None:
        return form.write(model, images, path, **sizes)
    run = form.fixed(model, _repeated(images, batch)[:batch], path)

    def in_batches(many: Tensor) -> Tensor:
        if len(many) == batch:
            return run(many)
        return torch.cat([run(part) for part in _repeated(many, batch).split(batch)])[: len(many)]

    return in_batches


def _repeated(images: Tensor, batch: int) -> Tensor:
    """Returns images (n, c, h, w), the first of them again behind the last, so that whole batches come out."""
    return images[torch.arange(-(-len(images) // batch) * batch) % len(images)]


def _original(files: RunDir, pruned: Classifier) -> Classifier:
    """Returns the original network of a run, in eval mode."""
    assert pruned.built is not None
    original = zoo.build(*pruned.built)
    with suppress(UserError):
        # With another head, as of a run that ended on other images, it takes the same time.
        load_into(original.network, read_weights(files.baseline_checkpoint), str(files.baseline_checkpoint))
    return original.eval()


def _against(
    original: Classifier, pruned: Forward, images: Tensor, batch: int | None, settings: EvaluateConfig
) -> list[dict[str, Any]]:
    """Times an ONNX file in turn with the original network, exported alike, on batches of the images."""
    timed = []
    with tempfile.TemporaryDirectory() as folder:
        other = _written(FORMATS["onnx"], original, images, Path(folder) / "original.onnx", batch)
        for size in [batch] if batch else settings.batch_sizes:
            shown = _repeated(images, size)[:size]
            passes = {"original": partial(other, shown), "pruned": partial(pruned, shown)}
            before, after = time_in_turn(
                passes, settings.latency_min_run_s, images.device, readings=readings_needed(0.95)
            ).values()
            timed.append(certificate.latency(size, median(before), median(after), paired_saving(before, after)))
    return timed


def _check_timm() -> None:
    timm = zoo.import_timm()
    if "data_config" not in signature(timm.models.save_for_hf).parameters:
        raise UserError(
            f"timm {timm.__version__} does not write what a network was made with", "pip install 'timm>=1.0.31'"
        )


def _check_target(path: Path, form: Format, files: RunDir) -> None:
    """Checks that a file or folder can be written, and that it is not one of the run's own."""
    name_another = f"name a {'folder' if form.holds else 'file'} in a folder that exists: --out PATH"
    if path.is_dir() and not form.holds:
        raise UserError(f"'{path}' is a folder", name_another)
    if form.holds and path.exists() and (not path.is_dir() or {file.name for file in path.iterdir()} - {*form.holds}):
        raise UserError(
            f"'{path}' holds something else already", "name a folder that is empty or not there: --out PATH"
        )
    if not path.parent.is_dir():
        raise UserError(f"there is no folder '{path.parent}'", name_another)
    if path.resolve() in (files.pruned_checkpoint.resolve(), files.baseline_checkpoint.resolve()):
        raise UserError(f"'{path}' holds the weights that the run has saved", "name another file: --out PATH")
    suffix = Path(form.name).suffix
    if path.suffix != suffix and path.suffix in ({Path(other.name).suffix for other in FORMATS.values()} - {""}):
        raise UserError(f"'{path.name}' ends like a file of another format", f"let it end in {suffix or 'nothing'}")
    try:
        try_writing(path / form.holds[0] if form.holds else path)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}", name_another) from error


def _test_images(config: RunConfig) -> Tensor:
    try:
        images = inputs.read_images(config)
    except UserError as error:
        raise UserError(f"no test images to check the file with: {error.message}", error.hint) from error
    return checked_images(images.test, config.seed)


def _safetensors(model: nn.Module, images: Tensor, path: Path) -> Forward:
    write_atomic(path, serialize(model, {"input": "images in [0, 1]", "shape": "x".join(map(str, images.shape[1:]))}))
    load_into(model, load_file(path), str(path))
    return model


def _torch_export(model: nn.Module, images: Tensor, path: Path, *, any_batch: bool = True) -> Forward:
    shapes = ({0: torch.export.Dim.DYNAMIC},) if any_batch else None
    program = torch.export.export(model, (images,), dynamic_shapes=shapes)
    torch.export.save(program, path)
    loaded: Forward = torch.export.load(path).module()
    return loaded


def _onnx(model: nn.Module, images: Tensor, path: Path, *, any_batch: bool = True) -> Forward:
    write_onnx(model, images, path, any_batch=any_batch)
    return onnx_forward(path)


def _timm(model: Classifier, images: Tensor, path: Path, *, resize_size: int) -> Forward:
    assert model.built is not None
    timm, side = zoo.import_timm(), images.shape[-1]
    # timm resizes to ⌊side / crop_pct⌋, which rounding may make one pixel less than it should be.
    crop_pct = math.nextafter(side / resize_size, 0) if side < resize_size else 1.0
    timm.models.save_for_hf(
        model.network,
        path,
        {"label_names": list(model.classes)},
        # Rates of dropping, which no answer depends on, it leaves out unless told.
        {name: value for name, value in model.built[0].kwargs.items() if "drop" in name},
        safe_serialization=True,
        data_config=_preprocessing(model, images) | {"crop_pct": crop_pct, "interpolation": "bilinear"},
    )
    loaded = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    said = timm.data.resolve_model_data_config(loaded)
    return Classifier(Normalize(said["mean"], said["std"]), loaded)


def _hf(model: Classifier, images: Tensor, path: Path, *, resize_size: int) -> Forward:
    hf.save(model.network, path, model.classes, resize_size, _preprocessing(model, images))
    return hf.load(path)


def _preprocessing(model: Classifier, images: Tensor) -> dict[str, Any]:
    """Returns what the network takes: its input (c, h, w), mean and deviation of each channel."""
    mean, std = (getattr(model.normalize, name).flatten().tolist() for name in ("mean", "std"))
    channels = max(images.shape[1], len(mean), len(std))
    return {
        "input_size": (channels, *images.shape[2:]),
        "mean": mean * (channels // len(mean)),
        "std": std * (channels // len(std)),
    }


@dataclass(frozen=True)
class Format:
    """How to write a file or folder and return it ready to run, and its name in a run directory.

    Attributes:
        write: writes a network, tried on images, into a path, and returns what it has written, as it is when loaded
            again; where that is a folder, given the `resize_size` of image files, too.
        fixed: the same for batches of as many images as it is given alone; None where that is no matter.
        name: of the file or folder in a run directory.
        holds: files in it, where it is a folder.
        loads: returns the Python that loads it where this package is not installed; None where it takes more.
    """

    write: Callable[..., Forward]
    name: str
    fixed: Callable[[nn.Module, Tensor, Path], Forward] | None = None
    holds: tuple[str, ...] = ()
    loads: Callable[[Path], str] | None = None


FORMATS = {
    "safetensors": Format(_safetensors, "pruned_with_normalization.safetensors"),
    "torch-export": Format(_torch_export, "pruned.pt2", partial(_torch_export, any_batch=False)),
    "onnx": Format(_onnx, "pruned.onnx", partial(_onnx, any_batch=False)),
    "timm": Format(
        _timm,
        "pruned_timm",
        holds=("config.json", "model.safetensors"),
        loads=lambda path: f"timm.create_model({f'local-dir:{path}'!r}, pretrained=True)",
    ),
    "hf": Format(
        _hf,
        "pruned_hf",
        holds=("config.json", "model.safetensors", "preprocessor_config.json"),
        loads=lambda path: f"transformers.AutoModelForImageClassification.from_pretrained({str(path)!r})",
    ),
}
