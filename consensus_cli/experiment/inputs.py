"""What a run reads besides its configuration, known by its content: the same files elsewhere are the same run."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from consensus_cli import data
from consensus_cli.config.schema import RunConfig, TransferConfig
from consensus_cli.data import ImageData
from consensus_cli.errors import UserError
from consensus_cli.experiment import checks
from consensus_cli.models import pretrained
from consensus_cli.models.paths import expanded
from consensus_cli.models.spec import ModelSpec
from consensus_cli.models.targets import find_target
from consensus_cli.models.weight_files import weight_files
from consensus_cli.screen import Screen

#: the request for the images that were read last -> images, and their fingerprint
KeptImages = dict[str, tuple[ImageData, str]]


@dataclass(frozen=True)
class Inputs:
    """What a run reads, besides weights, which are part of the hash of the configuration."""

    images: ImageData
    #: those that networks are fine-tuned on at the end, where they are others
    target: ImageData | None
    #: the key that names it (`dataset`, `transfer`, `model.target`, `evaluate.shift.NAME`) -> hash of its content
    hashes: dict[str, str]


def with_images_there_are(config: RunConfig, screen: Screen) -> RunConfig:
    """Returns the configuration with synthetic images where `dataset.if_missing` puts them, and says so on screen."""
    own, target = config.dataset, transfer_request(config)
    found = [_there(request, config, screen) for request in (own, target) if request is not None]
    config = replace(config, dataset=found[0])
    if target is not None and found[1] is not target:
        config = replace(config, transfer=TransferConfig(found[1].source, found[1].name))
    return config


def _there(request: data.Request, config: RunConfig, screen: Screen) -> data.Request:
    if request.source not in data.DATASETS:
        return request
    found = data.available(request, checks.cache_dir(config))
    if found is not request:
        screen.warning(
            f"dataset '{request.source}' is not in {request.root or checks.cache_dir(config)}: synthetic images stand "
            "in for it, as dataset.if_missing=synthetic says"
        )
    return found


def transfer_request(config: RunConfig) -> data.Request | None:
    """Returns what is asked of the images that networks are fine-tuned on at the end; None where they are the run's."""
    given = config.transfer
    if given.source is None:
        return None
    return replace(config.dataset, source=given.source, name=given.name or given.source, root=given.root)


def load_images(config: RunConfig, screen: Screen) -> ImageData:
    """Checks the configuration and loads its images. Raises UserError: files or values that are wrong."""
    checks.check(config)
    with screen.progress("loading images") as report:
        return read_images(config, report)


def read_images(config: RunConfig, progress: data.Progress | None = None) -> ImageData:
    """Loads the images of a checked configuration, as large as the network takes them.

    Raises UserError where files are missing or broken.
    """
    return data.load(_request(config), checks.cache_dir(config), seed=config.seed, progress=progress)


def _request(config: RunConfig) -> data.Request:
    size = pretrained.image_size(config.model)
    return config.dataset if size is None else replace(config.dataset, image_size=size)


def load(config: RunConfig, screen: Screen, kept: KeptImages | None = None) -> Inputs:
    """Checks the configuration, loads its images and finds out what else it reads; builds no network.

    Runs on the same images find them in `kept`. Raises UserError: files or values that are wrong.
    """
    kept = {} if kept is None else kept
    request = repr((replace(_request(config), cue=data.Cue()), config.output_dir, config.seed))
    if request not in kept:
        # Let go of first: two large datasets may not fit into memory together.
        kept.clear()
        images = load_images(config, screen)
        kept[request] = images, images.fingerprint()
    images, fingerprint = kept[request]
    hashes = {"dataset": fingerprint}
    if config.model.target is not None:
        hashes["model.target"] = code_hash(config.model.target)
    if (folder := model_folder(config.model)) is not None:
        hashes["model.name"] = _network_hash(folder, weights=config.model.weights is not None)
    for name, path in config.evaluate.shift.items():
        hashes[f"evaluate.shift.{name}"] = _images_hash(expanded(path))
    target = None
    if (other := transfer_request(config)) is not None:
        target = read_images(replace(config, dataset=other))
        hashes["transfer"] = target.fingerprint()
    return Inputs(images, target, hashes)


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file's content, 64 hex digits; reads it once as long as its size and time stay."""
    status = path.stat()
    return _content_hash(path.absolute(), status.st_ino, status.st_size, status.st_mtime_ns)


def weights_hash(model: ModelSpec) -> str | None:
    """Returns the hash of the files of weights, in however many shards; None for named weights, or where none are."""
    if model.weights is None or pretrained.is_named(model):
        return None
    try:
        hashes = [file_hash(file) for file in weight_files(expanded(model.weights))]
    except (UserError, OSError):
        # Reading them reports what is wrong.
        return None
    return hashes[0] if len(hashes) == 1 else _digest(hashes)


def model_folder(model: ModelSpec) -> Path | None:
    """Returns the folder on disk that `model.name` is, None where it is a name."""
    return expanded(model.name) if model.source == "hf" and expanded(model.name).is_dir() else None


def _network_hash(folder: Path, *, weights: bool) -> str:
    """Returns the hash of a network's configuration in a folder, and of its weights if they are read."""
    files = sorted(folder.glob("*.json"))
    return _digest(file_hash(file) for file in (*files, *(weight_files(folder) if weights else ())))


def code_hash(target: str | None) -> str:
    """Returns the hash of the source files that define what `model.target` names; empty where there are none.

    They are the file that it is in and those of the user's own that it imports, directly or not. Installed packages do
    not count, nor what is imported only once a function runs.

    Raises:
        UserError: the target cannot be found or imported.
    """
    found = None if target is None else inspect.unwrap(find_target(target))
    try:
        file = Path(inspect.getsourcefile(found) or "")  # type: ignore[arg-type]
    except TypeError:
        # No target, compiled code, or an object that can only be called.
        return ""
    if not file.is_file():
        return ""
    own: dict[str, Path] = {}
    _add_own_files(found.__module__, own)
    hashes = [file_hash(one) for one in {file, *own.values()}]
    return hashes[0] if len(hashes) == 1 else _digest(sorted(hashes))


def _add_own_files(name: str, own: dict[str, Path]) -> None:
    """Adds the source files of a module of the user's and of those that it imports; none of installed packages."""
    module = sys.modules.get(name)
    file = Path(getattr(module, "__file__", None) or "")
    if name in own or name.partition(".")[0] in {*sys.stdlib_module_names, "consensus_cli"}:
        return
    if file.suffix != ".py" or {"site-packages", "dist-packages"} & {*file.parts}:
        return
    try:
        code = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        # Someone has edited it since it was imported.
        return
    own[name] = file
    for imported in _imported_names(code, getattr(module, "__package__", None) or ""):
        _add_own_files(imported, own)


def _imported_names(node: ast.AST, package: str) -> Iterator[str]:
    """Yields the names of all modules, and of what may be one, that code imports outside functions."""
    for inner in ast.iter_child_nodes(node):
        names = []
        if isinstance(inner, ast.Import):
            names = [alias.name for alias in inner.names]
        elif isinstance(inner, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - inner.level] if inner.level else []
            base = ".".join([*above, *([inner.module] if inner.module else [])])
            names = [f"{base}.{alias.name}" for alias in inner.names]
        elif not isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _imported_names(inner, package)
        for name in names:
            while name:
                yield name
                # Of `a.b.c` the packages run as well.
                name = name.rpartition(".")[0]  # noqa: PLW2901


def located(config: RunConfig, folder: str | None) -> RunConfig:
    """Returns the configuration of a run begun in `folder` (None: unknown) with absolute paths of what it reads.

    Raises:
        UserError: names a path at which there is nothing any more, and the folder to which it was relative.
    """
    dataset, model = config.dataset, config.model
    find = functools.partial(_located, folder=folder)
    if dataset.root is not None:
        dataset = replace(dataset, root=find("dataset.root", dataset.root, made=dataset.download))
    transfer = config.transfer
    if transfer.root is not None:
        transfer = replace(transfer, root=find("transfer.root", transfer.root, made=dataset.download))
    if model.weights is not None and not pretrained.is_named(model):
        model = replace(model, weights=find("model.weights", model.weights))
    finetune, taught = config.finetune, replace(model, weights=config.finetune.teacher)
    if taught.weights is not None and not pretrained.is_named(taught):
        finetune = replace(finetune, teacher=find("finetune.teacher", taught.weights))
    if model.source == "hf" and (model_folder(model) or Path(folder or ".", model.name).is_dir()):
        model = replace(model, name=find("model.name", model.name))
    file, colon, name = (model.target or "").rpartition(":")
    if colon and file.endswith(".py"):
        model = replace(model, target=f"{find('model.target', file)}:{name}")
    shift = {name: find(f"evaluate.shift.{name}", path) for name, path in config.evaluate.shift.items()}
    if folder is not None:
        _check_names(config, Path(folder))
    evaluate = replace(config.evaluate, shift=shift)
    return replace(config, dataset=dataset, transfer=transfer, model=model, finetune=finetune, evaluate=evaluate)


def _located(key: str, path: str, *, folder: str | None, made: bool = False) -> str:
    if expanded(path).is_absolute():
        if not (expanded(path).exists() or made):
            raise UserError(f"{key}={path} is not there any more", "put it back there to resume the run")
        return path
    places = [Path(path).absolute()] if folder is None else [Path(folder, path), Path(path).absolute()]
    for place in places:
        if place.exists():
            return str(place)
    if made:
        return str(places[0])
    began = f"'{folder}', the folder in which" if folder else "the folder in which"
    raise UserError(
        f"{key}={path} is not there; it is relative to {began} the run began",
        "put it back there, or resume the run in a folder that holds it",
    )


def _check_names(config: RunConfig, folder: Path) -> None:
    """Checks that names which Python or Hugging Face found in the folder where the run began are found here, too."""
    names: dict[str, tuple[str, ...]] = {}
    if config.dataset.source == "hf":
        names[f"dataset.name={config.dataset.name}"] = (config.dataset.name,)
    if config.model.target is not None and ":" not in config.model.target:
        module = config.model.target.partition(".")[0]
        if importlib.util.find_spec(module) is None:
            names[f"model.target={config.model.target}"] = (module, f"{module}.py")
    for word, files in names.items():
        if any((folder / file).exists() for file in files) and not any(Path(file).exists() for file in files):
            raise UserError(
                f"{word} names what is in '{folder}', where the run began, and not here",
                f"resume the run there: cd {folder}",
            )


def _images_hash(path: Path) -> str:
    """Returns the hash of published test images: files by content, folders by relative names, sizes and times."""
    if path.is_dir():
        return _digest(_stamps(str(path)))
    files = [path]
    if path.suffix == ".npy":
        files.append(path.with_name(path.name.replace("data", "labels")))
    return _digest(file_hash(file) for file in files)


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(os.fsencode(text) + b"\0")
    return digest.hexdigest()


def _stamps(folder: str, relative: str = "") -> Iterator[str]:
    """Yields relative path, size in bytes and time of change in ns of every file below a folder, sorted."""
    with os.scandir(os.path.join(folder, relative)) as entries:  # noqa: PTH118
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = f"{relative}{entry.name}"
            if entry.is_dir():
                yield from _stamps(folder, f"{path}/")
            elif entry.is_file():
                status = entry.stat()
                yield f"{path} {status.st_size} {status.st_mtime_ns}"


@functools.lru_cache(maxsize=1024)
def _content_hash(path: Path, _inode: int, _size_bytes: int, _changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
