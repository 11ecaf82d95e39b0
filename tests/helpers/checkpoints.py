"""Checkpoints as they are found in the wild, all of one network: name -> what writes the file."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import io
import json
import pathlib
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

State = dict[str, Tensor]
Write = Callable[[Path, nn.Module, State], None]


class Network(nn.Module):
    """A convolution, a norm, a block, a head."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.layers = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)))
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        return self.fc((x + self.layers(x)).mean((2, 3)))


class Settings(dict[str, Any]):
    """A dictionary with attributes, as settings of trainers are."""

    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.frozen = True


class Milestones(list[int]):
    pass


class Task(enum.Enum):
    CLASSIFY = "classify"


def network_and_state() -> tuple[nn.Module, State]:
    torch.manual_seed(3)
    network = Network()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            assert module.num_batches_tracked is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(100)
    return network, network.state_dict()


def saved(make: Callable[[State], object]) -> Write:
    """Writes with torch.save what a function makes of the state dict."""
    return lambda path, _, state: torch.save(make(state), path)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def averaged(state: State) -> State:
    return {key: value + 1 for key, value in state.items()}


def _legacy(path: Path, _: nn.Module, state: State) -> None:
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, path, _use_new_zipfile_serialization=False)


def _safetensors(path: Path, _: nn.Module, state: State) -> None:
    save_file({key: value.contiguous() for key, value in state.items()}, path)


def _shards(path: Path, _: nn.Module, state: State) -> None:
    path.mkdir()
    where = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(state)}
    for file in set(where.values()):
        save_file({key: state[key].contiguous() for key in state if where[key] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


#: loads, every tensor as it was
WHOLE: dict[str, Write] = {
    "plain.pt": saved(lambda s: s),
    "no_suffix": saved(lambda s: s),
    "epoch=3-step=900.ckpt": saved(lambda s: s),
    "pickle.safetensors": saved(lambda s: s),
    "safetensors.pt": _safetensors,
    "plain.safetensors": _safetensors,
    "legacy_with_arguments.pt": _legacy,
    "folder_of_shards": _shards,
    **{
        f"{key}.pth": saved(lambda s, key=key: {key: s, "epoch": 3, "acc": 91.7})  # type: ignore[misc]
        for key in ("state_dict", "model", "net", "network", "model_state_dict", "params", "weights", "generator")
    },
    **{
        f"prefix {prefix}": saved(lambda s, prefix=prefix: {"state_dict": prefixed(s, prefix)})  # type: ignore[misc]
        for prefix in (
            *("module.", "_orig_mod.", "model.", "_orig_mod.module.", "module.model.", "model._orig_mod."),
            *("backbone.", "_forward_module.model."),
        )
    },
    "nested.pt": saved(lambda s: {"model": {"state_dict": prefixed(s, "module."), "step": 7}}),
    "list.pt": saved(lambda s: [s, {"epoch": 3}]),
    "compiled_block.pt": saved(lambda s: {k.replace("layers.0.", "layers.0._orig_mod."): v for k, v in s.items()}),
    "parallel_block.pt": saved(lambda s: {k.replace("layers.0.", "layers.module.0."): v for k, v in s.items()}),
    "compiled_in_parallel.pt": saved(
        lambda s: prefixed({k.replace("layers.0.", "layers._orig_mod.0."): v for k, v in s.items()}, "module.")
    ),
    "numbers_among_tensors.pt": saved(lambda s: s | {"epoch": 7, "loss": 0.5, "name": "x", "scheduler": None}),  # type: ignore[operator]
    "epoch_as_tensor.pt": saved(lambda s: s | {"epoch": torch.tensor(7)}),
    "profiled.pt": saved(lambda s: s | {"total_ops": torch.zeros(1), "layers.0.total_params": torch.zeros(1)}),
    "criterion_beside.ckpt": saved(
        lambda s: {"state_dict": prefixed(s, "net.") | {"criterion.weight": torch.ones(10)}, "loops": {}}
    ),
    "averaged_counter.pt": saved(lambda s: prefixed(s, "module.") | {"n_averaged": torch.tensor(3)}),
    "optimizer.pt": saved(
        lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {0: averaged(s)}, "param_groups": [{}]}}
    ),
    "optimizer_beside.pt": saved(lambda s: s | {"optimizer": {"state": {0: averaged(s)}}}),  # type: ignore[operator]
    "average_beside.pth": saved(lambda s: {"state_dict_ema": averaged(s), "state_dict": s}),
    "average_within.ckpt": saved(
        lambda s: {"state_dict": prefixed(averaged(s), "ema_model.") | prefixed(s, "model.")}
    ),
    "average_only.pth": saved(lambda s: {"model_ema": s}),
    "ema.pth": saved(lambda s: {"ema": prefixed(s, "module.")}),
    "same_twice.pt": saved(lambda s: {"model": s, "best_model": {k: v.clone() for k, v in s.items()}}),
    "parameters.pt": saved(lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()}),
    "numpy_scalar.pth": saved(lambda s: {"state_dict": s, "best_acc": np.float64(0.91), "curve": np.zeros(3)}),
    "arguments.pth": saved(lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)}),
    "objects.pth": saved(
        lambda s: {
            "model": s,
            "settings": Settings(lr=0.1, inner=Settings(depth=3)),
            "milestones": Milestones([3, 5]),
            "task": Task.CLASSIFY,
            "path": pathlib.PurePosixPath("a"),
            "time": datetime.datetime(2024, 1, 1),
            "recent": collections.deque([1.0, 2.0]),
            "counts": collections.defaultdict(int, a=1),
            "kinds": frozenset({"a"}),
        }
    ),
    "double.pt": saved(lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()}),
}  # fmt: skip

#: loads, tensors rounded
ROUNDED: dict[str, Write] = {
    "half.pt": saved(lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}),
    "bfloat16.pt": saved(lambda s: {k: v.bfloat16() if v.is_floating_point() else v for k, v in s.items()}),
}


def _bytes(content: bytes) -> Write:
    def write(path: Path, _network: nn.Module, _state: State) -> None:
        path.write_bytes(content)

    return write


def _zip(members: dict[str, bytes]) -> Write:
    def write(path: Path, _network: nn.Module, _state: State) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return write


def _torchscript(path: Path, network: nn.Module, _: State) -> None:
    torch.jit.trace(network.eval(), torch.rand(1, 1, 8, 8)).save(str(path))


def _cut(path: Path, _: nn.Module, state: State) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:3000])


def _folder(path: Path, _network: nn.Module, _state: State) -> None:
    path.mkdir()
    (path / "last.ckpt").touch()


def _incomplete_shards(path: Path, network: nn.Module, state: State) -> None:
    _shards(path, network, state)
    (path / "model-00002-of-00002.safetensors").unlink()


def _wrong_index(path: Path, _network: nn.Module, _state: State) -> None:
    path.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))


def _tar(path: Path, _network: nn.Module, _state: State) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pt"), io.BytesIO())


#: is refused: what writes the file -> what the message says
REFUSED: dict[str, tuple[Write, str]] = {
    "lfs.pth": (_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 11\n"), "Git LFS pointer"),
    "lfs.safetensors": (_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS pointer"),
    "page.pth": (_bytes(b"\n<!DOCTYPE html><html><head><title>Virus scan warning</title>"), "web page, 'Virus scan"),
    "error.pth": (
        _bytes(b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>'),
        "text file that begins with '<?xml",
    ),
    "answer.safetensors": (_bytes(b'{"error": "Invalid username or password."}'), "text file that begins with"),
    "empty.pt": (_bytes(b""), "is empty"),
    "zeros.safetensors": (_bytes(bytes(4096)), "filled with zeros"),
    "folder.pt": (_folder, "is a folder; it holds last.ckpt"),
    "shards_missing": (_incomplete_shards, "shard 'model-00002-of-00002.safetensors'"),
    "model.safetensors.index.json": (_wrong_index, "shard '../elsewhere.safetensors'"),
    "script.pt": (_torchscript, "TorchScript archive"),
    "exported.pt2": (_zip({"x/archive_format": b"pt2", "x/models/model.json": b"{}"}), "program of torch.export"),
    "keras.h5": (_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "HDF5"),
    "model.keras": (
        _zip({"config.json": b"{}", "model.weights.h5": b""}),
        "zip archive of config.json, model.weights.h5",
    ),
    "arrays.npz": (_zip({"a.npy": b"", "b.npy": b""}), "zip archive of a.npy, b.npy"),
    "packed.pth": (_zip({"best/weights.pth": b""}), "zip archive of best/weights.pth"),
    "packed.tar": (_tar, "tar archive"),
    "packed.pth.gz": (_bytes(b"\x1f\x8b" + bytes(20)), "a compressed file"),
    "model.onnx": (_bytes(b"\x08\x07\x12\x07pytorch\x1a\x053.0.0:" + bytes(range(128, 256))), "ONNX"),
    "array.npy": (_bytes(b"\x93NUMPY\x01\x00"), "array of NumPy"),
    "noise.bin": (_bytes(bytes(range(255, 127, -1)) * 3), "of an unknown kind"),
    "cut.pt": (_cut, "cannot be read"),
    "protocol4.pt": (lambda path, _, state: torch.save(state, path, pickle_protocol=4), "a pickle_protocol of its own"),
    "plain_pickle.pkl": (
        lambda path, _, state: path.write_bytes(pickle.dumps(dict.fromkeys(state, 1))) and None,
        "torch.save has not written",
    ),
    "whole_model.pt": (
        lambda path, network, _: torch.save(network, path),
        "a whole object of helpers.checkpoints.Network",
    ),
    "model_inside.pt": (
        lambda path, network, _: torch.save({"model": network, "epoch": 3, "loss": torch.tensor(0.1)}, path),
        "holds no state dict: it holds model (helpers.checkpoints.Network), epoch (int)",
    ),
    "arrays.pt": (
        lambda path, _, state: torch.save({key: value.numpy() for key, value in state.items()}, path),
        "holds no state dict",
    ),
    "numbers.pt": (saved(lambda s: {"epoch": 3, "history": [1, 2]}), "it holds epoch (int), history (list)"),
    "optimizer_only.pt": (saved(lambda s: {"optimizer": {"state": {0: s}}}), "holds no state dict"),
}
