"""What a file is that holds no weights we can read, recognised by its first bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from consensus_cli.errors import UserError, enumerated

_UNPACK = "unpack it and give the file of weights in it"
_FROM_OTHER = "load it in its own framework and save a PyTorch state dict or safetensors"
_DOWNLOAD = "download the file itself, in a browser or by the link to the raw file"

#: gzip, bzip2, xz, Zstandard, 7z, RAR
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"Rar!")

#: bytes at the beginning, what the file is, what to do; the first that fits
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights themselves", "where it was cloned: git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write them", _FROM_OTHER),
    (b"\x93NUMPY", "an array of NumPy", "save a state dict: names and tensors"),
    *((magic, "a compressed file", _UNPACK) for magic in _COMPRESSED),
    (
        b"PK",
        "damaged or cut short, so it cannot be read: a zip archive without its end",
        "copy or download it again",
    ),
    (
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
    what, hint = _recognised(path, start)
    return UserError(f"checkpoint {path} is {what}", hint)


def zip_refusal(path: Path, names: Iterable[str]) -> UserError | None:
    """Returns the error for a zip file whose members are not those of a PyTorch state dict; None where they may be."""
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
    return UserError(f"checkpoint {path} is a zip archive of {enumerated(members, 10)}", f"{_UNPACK}, or {_FROM_OTHER}")


def folder_refusal(path: Path) -> UserError:
    """Returns the error for a folder that holds no weights in a known form."""
    found = sorted(item.name for item in path.iterdir())
    if ".metadata" in found or any(name.endswith(".distcp") for name in found):
        return UserError(
            f"checkpoint {path} is a distributed checkpoint",
            "make one file of it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE",
        )
    holds = enumerated(found, 10) if found else "nothing"
    return UserError(f"checkpoint {path} is a folder; it holds {holds}", "give the file of weights in it")


def _recognised(path: Path, start: bytes) -> tuple[str, str]:
    """Returns what a file is, and what to do."""
    if not any(start):
        what = "filled with zeros from its beginning" if start else "empty"
        return f"{what}, so it cannot be read", "was it copied or downloaded to its end?"
    for magic, what, hint in _MAGIC:
        if start.startswith(magic):
            return what, hint
    if start.startswith(b"ustar", 257):
        return "a tar archive", _UNPACK
    if path.suffix == ".onnx" or (start.startswith(b"\x08") and b"pytorch" in start[:64]):
        return "a model in ONNX", "give the weights of the PyTorch network that it was exported from"
    return _recognised_text(start) or ("of an unknown kind: neither safetensors nor written by torch.save", _DOWNLOAD)


def _recognised_text(start: bytes) -> tuple[str, str] | None:
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
    return f"a text file that begins with '{' '.join(text[:60].split())}'", _DOWNLOAD
