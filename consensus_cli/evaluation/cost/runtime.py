"""What runs a network where it is used: PyTorch as it is, compiled, or ONNX Runtime; all are called alike."""

from __future__ import annotations

import importlib
import io
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from functools import partial
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from consensus_cli.errors import UserError, foreign_code, unknown_name
from consensus_cli.models.modes import evaluating

#: one forward pass: images (n, c, h, w) -> logits (n, k)
Forward = Callable[[Tensor], Tensor]

PRECISIONS = ("fp32", "bf16")

#: argument of newer releases of PyTorch, which its type hints do not know
_ISOLATED: dict[str, Any] = dict.fromkeys({"isolate_recompiles"} & set(signature(torch.compile).parameters), True)

_ELSE = "the runtime 'torch' needs nothing else and runs any network"


def forward_of(model: nn.Module, images: Tensor, runtime: str = "torch", precision: str = "fp32") -> Forward:
    """Returns a network ready to run in a runtime: compiled or exported if need be, and run once.

        with evaluating(model):
            forward = forward_of(model, images, "onnxruntime")
            logits = forward(images)

    It computes with as many threads as PyTorch has at the time of each call.

    Args:
        model: any network, in the mode (`eval`) in which it is to run; it must stay as it is.
        images: (n, c, h, w) on the model's device. Runtimes other than `torch` take images of this very shape alone.
        runtime: a name in `RUNTIMES`.
        precision: `fp32`, or `bf16` autocast.

    Raises:
        UserError: the runtime is missing, or cannot take this network.
    """
    check_runtime(runtime, images.device, precision)
    with foreign_code(f"the runtime {runtime}", _ELSE):
        forward = RUNTIMES[runtime](model, images, precision)
        forward(images)
    return forward


@contextmanager
def ready(
    models: Mapping[str, nn.Module], images: Tensor, runtime: str = "torch", precision: str = "fp32"
) -> Iterator[dict[str, Callable[[], object]]]:
    """Yields, by name, what runs one forward pass of each network, in eval mode; arguments as in `forward_of`."""
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        yield {name: partial(forward_of(model, images, runtime, precision), images) for name, model in models.items()}


def check_runtime(runtime: str, device: torch.device, precision: str = "fp32") -> None:
    """Checks that a runtime is installed, and can compute on a device in a precision.

    Raises:
        UserError: there is no runtime or precision of the name, it is not installed, or runs elsewhere alone.
    """
    if runtime not in RUNTIMES:
        raise unknown_name("runtime", runtime, RUNTIMES)
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if runtime == "torch-compile" and (missing := lacks_to_compile(device)):
        raise UserError(f"the runtime torch-compile needs {missing}", _ELSE)
    if runtime == "onnxruntime":
        if device.type != "cpu":
            raise UserError(f"onnxruntime is measured on the CPU, not on {device}", f"use device=cpu; {_ELSE}")
        if precision != "fp32":
            raise UserError(f"onnxruntime computes in fp32 here, not in {precision}", f"use fp32; {_ELSE}")
        check_onnx_installed()


def lacks_to_compile(device: torch.device) -> str | None:
    """Returns what torch.compile would call on a device and does not find, as in `needs …`; None if all is there."""
    if device.type == "cuda" and find_spec("triton") is None:
        return "triton, which is not installed"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        return f"a C++ compiler, and there is no {compiler}"
    return None


def check_onnx_installed() -> None:
    """Checks that networks can be exported to ONNX, and run from there. Raises UserError if they cannot."""
    for package in ("onnxruntime", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"ONNX needs a package that is not installed: {error.name}",
                "install the extra: pip install 'consensus-cli[onnx]'",
            ) from error


def write_onnx(model: nn.Module, images: Tensor, path: Path, *, any_batch: bool) -> None:
    """Writes a network as ONNX, from `images` (n, c, h, w) to `logits` (n, k).

    Args:
        model: any network, in eval mode.
        images: what it is exported with; two or more where batches of any size are wanted.
        path: the file; weights of more than 2 GiB go into another beside it.
        any_batch: whether it takes batches of any size, or those of this size alone.
    """
    with quiet():
        program = torch.onnx.export(
            model,
            (images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},) if any_batch else None,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(path)


def onnx_forward(path: Path) -> Forward:
    """Returns a network in an ONNX file as a function, which runs on the CPU with as many threads as PyTorch has."""
    onnxruntime = importlib.import_module("onnxruntime")
    content: bytes | str = str(path)

    def session(threads: int):  # type: ignore[no-untyped-def]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Threads that spin while they wait would take the cores from what is measured in turn with this.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    threads = torch.get_num_threads()
    opened = session(threads)

    def forward(images: Tensor) -> Tensor:
        nonlocal threads, opened
        if torch.get_num_threads() != threads:
            threads = torch.get_num_threads()
            opened = session(threads)
        return torch.from_numpy(opened.run(None, {"images": images.numpy()})[0])

    return forward


@contextmanager
def quiet() -> Iterator[None]:
    """Silences compilers and exporters, which speak about their internals: what they make is compared and measured."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _torch(model: nn.Module, images: Tensor, precision: str) -> FunctionType:
    def forward(batch: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits: Tensor = model(batch)
            return logits

    assert isinstance(forward, FunctionType)
    return forward


def _compiled(model: nn.Module, images: Tensor, precision: str) -> Forward:
    # PyTorch compiles eight networks that share their code, as a network and its pruned copies do, and silently runs
    # the others as they are. So each gets code of its own, and where PyTorch can, what it calls is kept apart as well.
    forward = _torch(model, images, precision)
    forward.__code__ = forward.__code__.replace()
    compiled: Forward = torch.compile(forward, dynamic=False, **_ISOLATED)
    with quiet():
        compiled(images)
    return compiled


def _onnx(model: nn.Module, images: Tensor, _precision: str) -> Forward:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write_onnx(model, images, path, any_batch=False)
        return onnx_forward(path)


#: runtime -> makes a network, images and a precision ready to run
RUNTIMES: dict[str, Callable[[nn.Module, Tensor, str], Forward]] = {
    "torch": _torch,
    "torch-compile": _compiled,
    "onnxruntime": _onnx,
}
