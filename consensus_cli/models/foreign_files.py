"""What a file is that holds no weights we can read, told by its first bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from consensus_cli.errors import UserError

_UNPACK = "unpack it and give the file of weights in it"
_FROM_OTHER = "load it in its own framework and save a PyTorch state dict or safetensors"
_DOWNLOAD = "download the file itself, in a browser or by the link to the raw file"

#: offset, bytes that are there, what the file is, what to do; the first that fits
_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer, not the weights themselves",
        "fetch them where it was cloned: git lfs pull",
    ),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write them", _FROM_OTHER),
    (0, b"\x93NUMPY", "an array of NumPy", "save a state dict: names and tensors"),
    (0, b"GGUF", "a GGUF file, quantised for llama.cpp", "give the weights that it was made of"),
    (0, b"MATLAB 5.0", "a file of MATLAB", _FROM_OTHER),
    (0, b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (0, b"BZh", "compressed by bzip2", _UNPACK),
    (0, b"\xfd7zXZ\x00", "compressed by xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed by Zstandard", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (0, b"\x89PNG", "an image", "model.weights takes a file of weights"),
    (0, b"\xff\xd8\xff", "an image", "model.weights takes a file of weights"),
    (0, b"%PDF", "a PDF document", "model.weights takes a file of weights"),
    (4, b"TFL3", "a model of TensorFlow Lite", _FROM_OTHER),
    (257, b"ustar", "a tar archive", _UNPACK),
    (
        0,
        b"PK",
        "damaged or cut short, so it cannot be read: a zip archive without its end",
        "copy or download it again",
    ),
    (
        0,
        b"\x80",
        "a Python pickle that torch.save has not written: loading it may run code, so it is refused",
        "load it where you trust it and save the state dict alone: torch.save(…)",
    ),
)


def refusal(path: Path, start: bytes) -> UserError:
    """Returns the error for a file that is neither safetensors nor written by PyTorch.

    Args:
        path: the file.
        start: its first 512 bytes or more.
    """
    what, hint = _told_by_bytes(path, start)
    return UserError(f"checkpoint {path} is {what}", hint)


def zip_refusal(path: Path, names: Iterable[str]) -> UserError | None:
    """Returns the error for a zip file that is no state dict of PyTorch, told by what it holds; None where it may be.

    Args:
        path: the file.
        names: the members of the archive.
    """
    members = sorted(names)
    inside = {Path(name).name for name in members}
    if {"constants.pkl", "data.pkl"} <= inside:
        return UserError(
            f"checkpoint {path} is a TorchScript archive: weights together with code",
            "take its weights out: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')",
        )
    if {"archive_format", "archive_version"} & inside:
        return UserError(
            f"checkpoint {path} is a program of torch.export, not a state dict",
            "take its weights out: torch.save(torch.export.load(FILE).state_dict, 'weights.pt')",
        )
    if "data.pkl" in inside:
        return None
    if "model.weights.h5" in inside:
        return UserError(f"checkpoint {path} is a model of Keras", _FROM_OTHER)
    if members and all(name.endswith(".npy") for name in members):
        return UserError(f"checkpoint {path} is an archive of NumPy arrays", "save them as a state dict of tensors")
    return UserError(f"checkpoint {path} is a zip archive of {some(members)}", _UNPACK)


def folder_refusal(path: Path) -> UserError:
    """Returns the error for a folder that holds no weights in a known form."""
    found = sorted(item.name for item in path.iterdir())
    if ".metadata" in found or any(name.endswith(".distcp") for name in found):
        return UserError(
            f"checkpoint {path} is a distributed checkpoint",
            "make one file of it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE",
        )
    if "saved_model.pb" in found:
        return UserError(f"checkpoint {path} is a model of TensorFlow", _FROM_OTHER)
    holds = some(found) if found else "nothing"
    return UserError(f"checkpoint {path} is a folder; it holds {holds}", "give the file of weights in it")


def some(names: list[str], most: int = 10) -> str:
    """Returns the first names, and how many there are beyond."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _told_by_bytes(path: Path, start: bytes) -> tuple[str, str]:
    if not any(start):
        what = "filled with zeros from its beginning" if start else "empty"
        return f"{what}, so it cannot be read", "was it copied or downloaded to its end?"
    for offset, magic, what, hint in _MAGIC:
        if start.startswith(magic, offset):
            return what, hint
    if path.suffix == ".onnx" or (start.startswith(b"\x08") and b"pytorch" in start[:64]):
        return "a model in ONNX", "give the weights of the PyTorch network that it was exported from"
    return _told_by_text(start) or ("of an unknown kind: neither safetensors nor written by torch.save", _DOWNLOAD)


def _told_by_text(start: bytes) -> tuple[str, str] | None:
    try:
        # The last character may be cut in two.
        text = start.decode("utf-8-sig", errors="strict" if len(start) < 512 else "ignore").strip()
    except UnicodeDecodeError:
        return None
    if "\x00" in text:
        return None
    if re.match(r"<(!doctype html|html|head|body|script)\b", text, re.IGNORECASE):
        title = re.search(r"<title>\s*(.*?)\s*</title>", text, re.IGNORECASE | re.DOTALL)
        return "a web page" + (f", '{title[1]}'" if title else "") + ", not the weights", _DOWNLOAD
    if text.startswith("<?xml"):
        return "an XML document, such as the error message of a server", _DOWNLOAD
    line = " ".join(text[:60].split())
    return f"a text file that begins with '{line}'", "model.weights takes a file of weights"
