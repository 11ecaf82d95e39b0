"""Tensors by name out of the files in which weights are found: safetensors, PyTorch's own, whole or in shards."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from consensus_cli.errors import UserError, enumerated, first_line
from consensus_cli.models.foreign_files import folder_refusal, refusal, zip_refusal
from consensus_cli.models.unpickling import Foreign, load_inert

#: what a folder of weights is looked through for, best first
_IN_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)

#: a header of safetensors is no longer than this
_LONGEST_HEADER = 100_000_000

_DEEPEST = 6


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint by name, on the CPU; nothing that a file holds is executed.

    What a file is, its content says, whatever its suffix. Where a state dict lies inside a training checkpoint, the
    names of what it lies in come first (`state_dict.module.conv1.weight`); everything else in it is left out, and so
    is what an optimiser keeps.

    Args:
        path: a file, the index of a sharded checkpoint (`model.safetensors.index.json`), or the folder of one.

    Raises:
        UserError: the file is missing, damaged, something else, or holds no tensors by name.
    """
    files = weight_files(path)
    tensors: dict[str, Tensor] = {}
    # Where there are shards, the first file is their index.
    for file in files[1:] or files:
        content = _content(file)
        found = _flat(content, "", 0)
        # A loss or an accuracy may be a tensor as well.
        if not any(tensor.ndim for tensor in found.values()):
            raise _no_tensors(file, content)
        tensors |= found
    return tensors


def weight_files(path: Path) -> list[Path]:
    """Returns the files that the weights of a path lie in: itself, or an index followed by its shards.

    Raises:
        UserError: there is no such file, or the folder or index leads to none.
    """
    try:
        inside = [path / name for name in _IN_FOLDER if (path / name).is_file()]
        if path.is_dir() and not inside:
            raise folder_refusal(path)
        file = inside[0] if inside else path
        if not file.is_file():
            raise UserError(
                f"checkpoint {path} does not exist", "model.weights takes the path of a file; is it spelled right?"
            )
        return [file, *_shards(file)] if file.name.endswith(".index.json") else [file]
    except OSError as error:
        raise _unreadable(path, error) from error


def _shards(index: Path) -> list[Path]:
    """Returns the shards that an index names, all beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"checkpoint {index} is not an index of shards: it has no weight_map", "give the file of weights itself"
        ) from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(
                f"checkpoint {index} names the shard '{name}', which does not lie beside it", "fetch all of its shards"
            )
    return [index.parent / name for name in names]


def _content(path: Path) -> object:
    try:
        with path.open("rb") as file:
            start = file.read(512)
        members = zipfile.ZipFile(path).namelist() if start.startswith(b"PK\x03\x04") else None
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError):
        # Its directory is cut off, or its bytes are others'.
        raise refusal(path, start) from None
    except OSError as error:
        raise _unreadable(path, error) from error
    safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER
    if members is not None and (refused := zip_refusal(path, members)):
        raise refused
    if members is None and not safetensors and not _is_legacy(start):
        raise refusal(path, start)
    try:
        return load_file(path) if safetensors else load_inert(path)
    except (UserError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        why = "it is damaged, written with a pickle_protocol of its own, or holds code, which is refused"
        raise UserError(
            f"checkpoint {path} cannot be read: {why}",
            "copy it again, or save the state dict alone: torch.save(model.state_dict(), …)",
        ) from error
    except Exception as error:
        # Damaged bytes make PyTorch's reader fail in more ways than can be listed.
        raise _unreadable(path, error) from error


def _is_legacy(start: bytes) -> bool:
    """Whether a file begins as those of PyTorch before 1.6: the pickle of its magic number."""
    return start.startswith(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.")


def _flat(content: object, prefix: str, depth: int) -> dict[str, Tensor]:
    """Returns the tensors of nested mappings by the path to each, `outer.inner.name`."""
    found: dict[str, Tensor] = {}
    for key, value in _items(content):
        name = f"{prefix}{key}"
        if isinstance(value, Tensor) and isinstance(content, Mapping):
            found[name] = value
        # A checkpoint may hold itself, and an optimiser's averages look like the weights.
        elif depth < _DEEPEST and not str(key).lower().startswith("optim"):
            found |= _flat(value, f"{name}.", depth + 1)
    return found


def _items(content: object) -> Iterator[tuple[object, object]]:
    if isinstance(content, Mapping):
        yield from ((key, value) for key, value in content.items() if isinstance(key, (str, int)))
    elif isinstance(content, (list, tuple)):
        yield from enumerate(content)


def _no_tensors(path: Path, content: object) -> UserError:
    save = "save the state dict alone where the network's code is: torch.save(model.state_dict(), …)"
    if isinstance(content, Foreign):
        return UserError(
            f"checkpoint {path} is a whole object of {content.path}, not its weights: loading it may run code, so it "
            "is refused",
            save,
        )
    inside = dict(content) if isinstance(content, Mapping) else {}
    held = enumerated([f"{key} ({_kind(value)})" for key, value in inside.items()], 10) or _kind(content)
    objects = any(isinstance(value, Foreign) for value in inside.values())
    refused = "; objects of foreign classes are refused, since loading them may run code" if objects else ""
    return UserError(
        f"checkpoint {path} holds no state dict: it holds {held}{refused}",
        save if objects else "it must map parameter names to tensors",
    )


def _kind(value: object) -> str:
    if isinstance(value, Foreign):
        return value.path
    return f"empty {type(value).__name__}" if isinstance(value, (Mapping, list)) and not value else type(value).__name__


def _unreadable(path: Path, error: Exception) -> UserError:
    refused = isinstance(error, PermissionError)
    hint = "may you read it?" if refused else "the file is damaged or cut short; copy it again"
    return UserError(f"checkpoint {path} cannot be read: {first_line(error)}", hint)
