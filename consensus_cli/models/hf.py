"""Image classifiers of Hugging Face transformers (extra `hf`), from a folder on disk or a name on the hub.

A network is built from its configuration alone, as plain values that a `ModelSpec` carries: what was pruned once is
rebuilt without folder and hub. Code that a repository brings is never executed.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from consensus_cli.errors import UserError, enumerated, first_line, unknown_name
from consensus_cli.models.hub import without_waiting
from consensus_cli.models.paths import expanded
from consensus_cli.models.weight_files import weight_files

#: settings that say where a configuration comes from, or what its classes are called; none changes the network
_NOT_THE_NETWORK = ("_name_or_path", "transformers_version", "dtype", "id2label", "label2id", "num_labels")


def check(name: str) -> None:
    """Checks that a folder or name has the configuration of an image classifier; fetches no weights.

    Raises:
        UserError: transformers is not installed, there is no such folder, nothing to be had by that name, or it is
            another kind of network.
    """
    config, library = _published(name)[0], _library()
    known = library.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if type(config) not in known:
        raise UserError(
            f"model.name={name} is of type {config.model_type}, of which transformers has no image classifier",
            f"choose one of: {', '.join(sorted(kind.model_type for kind in known))}",
        )


def check_weights(name: str) -> None:
    """Checks, without any download, that a folder holds weights. Raises UserError where it does not."""
    if (folder := _folder(name)) is not None:
        weight_files(folder)


def arguments(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `build` needs besides the number of classes: the published configuration with some values changed.

    Raises:
        UserError: a value that the configuration does not have, or cannot take.
    """
    published = json.loads(_published(name)[0].to_json_string())
    if unknown := [key for key in changes if key not in published]:
        raise unknown_name(f"value in the configuration of {name}:", unknown[0], published)
    plain = {key: value for key, value in published.items() if key not in _NOT_THE_NETWORK}
    return {"config": plain | dict(changes)}


def build(config: Mapping[str, Any], num_classes: int) -> nn.Module:
    """Builds a network with fresh weights from the plain values of a configuration."""
    with _quietly():
        network: nn.Module = _library().AutoModelForImageClassification.from_config(_config(config, num_classes))
    return network


def image_size(name: str, changes: Mapping[str, Any]) -> int | None:
    """Returns the side in pixels of the images that a network takes, None where neither it nor its processor says so.

    Args:
        name: folder or name on the hub.
        changes: values of the configuration that are not as published.
    """
    config, processor = _published(name)
    size = None
    if processor is not None:
        cropped = getattr(processor, "do_center_crop", False) and getattr(processor, "crop_size", None)
        given = dict(cropped or getattr(processor, "size", None) or {})
        size = given.get("height") or given.get("shortest_edge")
    size = changes.get("image_size", size or getattr(config, "image_size", None))
    return int(size[0] if isinstance(size, Sequence) else size) if size else None


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Returns mean and deviation, for images in [0, 1], of a network's image processor; None where it has none."""
    processor = _published(name)[1]
    if processor is None:
        return None
    # The processor computes (f·p − offset − mean) / std of pixels p from 0 to 255.
    scale = 255 * processor.rescale_factor if getattr(processor, "do_rescale", False) else 255.0
    offset = float(bool(getattr(processor, "rescale_offset", False)))
    normalizes = getattr(processor, "do_normalize", False) and processor.image_mean is not None
    mean, std = (processor.image_mean, processor.image_std) if normalizes else ((0.0,), (1.0,))
    means, deviations = ([float(v)] * 3 if isinstance(v, int | float) else [*map(float, v)] for v in (mean, std))
    return tuple((m + offset) / scale for m in means), tuple(s / scale for s in deviations)


def published_weights(
    name: str, config: Mapping[str, Any], classes: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the weights of a network, rows of its head in the order of the classes, and what to say about them.

    Labels are matched to classes by name. Where some class has no label of its name, they stay in their order.

    Args:
        name: folder or name on the hub.
        config: plain values of the configuration, as `arguments` returns them.
        classes: names of the dataset's classes.

    Raises:
        UserError: there are no weights, or transformers cannot load them into the network.
    """
    published = _published(name)[0]
    labels = [str(label) for _, label in sorted(published.id2label.items())]
    hint = "give a file: model.weights=PATH, or model.weights=null to train it anew"
    with _explained(f"the weights of {name} cannot be loaded", hint), _at_hand(name):
        network, found = _library().AutoModelForImageClassification.from_pretrained(
            _place(name),
            config=_config(config, published.num_labels),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    # Transformers draws what is missing or of another shape; here it must not pass for given.
    drawn = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    state = {key: value for key, value in network.state_dict().items() if key not in drawn}
    notes = []
    if getattr(_published(name)[1], "do_flip_channel_order", False):
        notes.append(f"{name} was trained on images in the order blue, green, red, which they do not have here")
    order = _order(labels, classes) if len(labels) == published.num_labels else None
    if order is None:
        if len(labels) == len(classes):
            notes.append(
                f"{name}: its labels ({enumerated(labels, 3)}) are not the names of the classes "
                f"({enumerated(classes, 3)}), so they are taken in their order"
            )
    elif order != [*range(len(labels))]:
        with torch.device("meta"):
            wider = build(config, len(labels) + 1).state_dict()
        for key in [key for key, value in state.items() if value.shape != wider[key].shape]:
            state[key] = state[key][order]
        others = f" of {len(labels)}" if len(labels) > len(classes) else ""
        notes.append(f"{name}: its {len(classes)}{others} labels are put into the order of the classes, by name")
    return state, notes


def save(
    network: nn.Module, folder: Path, classes: Sequence[str], resize_size: int, preprocessing: Mapping[str, Any]
) -> None:
    """Writes a network with its labels, and an image processor that makes of image files what it takes.

    Args:
        network: of transformers.
        folder: made where absent.
        classes: names of the classes in the order of the logits; none keeps the labels that the network has.
        resize_size: length of an image's shorter side before the centre is cropped, in pixels.
        preprocessing: `input_size` (c, h, w); `mean` and `std` of each channel, of images in [0, 1].
    """
    config: Any = network.config
    if len(classes) == config.num_labels:
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: label for label, name in enumerate(classes)}
    channels, height, width = preprocessing["input_size"]
    processor = _library().CLIPImageProcessor(
        size={"shortest_edge": resize_size},
        crop_size={"height": height, "width": width},
        resample=2,  # bilinear
        image_mean=list(preprocessing["mean"]),
        image_std=list(preprocessing["std"]),
        do_convert_rgb=channels == 3,
    )
    with _quietly():
        network.save_pretrained(folder)  # type: ignore[operator]
        processor.save_pretrained(folder)


def load(folder: Path) -> Callable[[Tensor], Tensor]:
    """Returns what `save` has written, as others load it: maps images (n, c, h, w) in [0, 1] to logits (n, k)."""
    library = _library()
    with _quietly():
        network = library.AutoModelForImageClassification.from_pretrained(folder).eval()
        processor = library.AutoImageProcessor.from_pretrained(folder)

    def run(images: Tensor) -> Tensor:
        as_they_are = {"do_resize": False, "do_center_crop": False, "do_rescale": False}
        logits: Tensor = network(**processor(list(images), **as_they_are, return_tensors="pt")).logits
        return logits

    return run


def _order(labels: Sequence[str], classes: Sequence[str]) -> list[int] | None:
    """Returns the position of each class among the labels, None where some have no label of their name.

    A label may be a list of synonyms, as those of ImageNet are; case and `_` in place of spaces do not count.
    """
    whole = {_plain(label): i for i, label in enumerate(labels)}
    synonyms = [(part, i) for i, label in enumerate(labels) for part in {_plain(part) for part in label.split(",")}]
    counts = Counter(part for part, _ in synonyms)
    position = {part: i for part, i in synonyms if counts[part] == 1} | whole
    found = [position.get(_plain(name)) for name in classes]
    known = [i for i in found if i is not None]
    return known if known and len(known) == len(classes) == len(set(known)) else None


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _config(plain: Mapping[str, Any], num_classes: int) -> Any:
    values = {"architectures": []} | {key: value for key, value in plain.items() if key != "model_type"}
    return _library().AutoConfig.for_model(plain["model_type"], **values, num_labels=num_classes)


def _published(name: str) -> tuple[Any, Any]:
    """Returns the configuration of a network and its image processor, None where it has none."""
    folder = _folder(name)
    times = [] if folder is None else [(file.name, file.stat().st_mtime_ns) for file in sorted(folder.glob("*.json"))]
    return _read(name, tuple(times))


@functools.lru_cache(maxsize=32)
def _read(name: str, _times: tuple[tuple[str, int], ...]) -> tuple[Any, Any]:
    library, place = _library(), _place(name)
    hint = "is it spelled right, and is there a connection? a folder that holds config.json will do: model.name=PATH"
    with _explained(f"model.name={name} cannot be read", hint), _at_hand(name):
        config = library.AutoConfig.from_pretrained(place, trust_remote_code=False)
    try:
        with _quietly(), _at_hand(name):
            return config, library.AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError):
        # Most have one; without it the dataset's size and statistics are as good as any.
        return config, None


def _folder(name: str) -> Path | None:
    """Returns the folder of a network on disk, None for a name on the hub."""
    path = expanded(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            holds = enumerated(sorted(item.name for item in path.iterdir()), 10) or "nothing"
            raise UserError(f"model.name={name} has no config.json; it holds {holds}", "give the folder that holds it")
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise UserError(f"model.name={name}: there is no such folder", "is the path spelled right?")
    return None


def _place(name: str) -> str:
    return str(_folder(name) or name)


def _at_hand(name: str) -> AbstractContextManager[None]:
    return nullcontext() if _folder(name) else without_waiting()


def _library() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            "transformers is not installed", "install the extra: pip install 'consensus-cli[hf]'"
        ) from error


@contextmanager
def _explained(what: str, hint: str) -> Iterator[None]:
    """Runs the body quietly; what transformers or the client of the hub raises in it becomes one line."""
    try:
        with _quietly():
            yield
    except UserError:
        raise
    except Exception as error:
        # They raise errors of many kinds, not all of OSError or ValueError.
        raise UserError(f"{what}: {first_line(error)}", hint) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps transformers and the client of the hub from writing to the screen while the body runs."""
    ours, hub = _library().utils.logging, importlib.import_module("huggingface_hub").utils.logging
    before = ours.get_verbosity(), hub.get_verbosity(), ours.is_progress_bar_enabled()
    ours.set_verbosity_error()
    hub.set_verbosity(hub.CRITICAL)
    ours.disable_progress_bar()
    try:
        yield
    finally:
        ours.set_verbosity(before[0])
        hub.set_verbosity(before[1])
        if before[2]:
            ours.enable_progress_bar()
