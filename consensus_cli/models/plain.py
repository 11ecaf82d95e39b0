"""A network that somebody's code has made, brought into the form that this tool works with: plain, in float32."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from consensus_cli.errors import UserError, enumerated


@contextmanager
def settings_kept() -> Iterator[None]:
    """Undoes what code in the body changes in PyTorch for the whole process: default type and device, gradients."""
    dtype, device, gradients = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)
        # Asked first: setting the device, even to what it is, puts a mode around every function of PyTorch.
        if torch.get_default_device() != device:
            torch.set_default_device(device)


def unwrapped(network: nn.Module) -> nn.Module:
    """Returns the network as it was before parts of it, or all, were compiled or made data-parallel.

    The names of its modules and weights are then those of the network. Methods that the author has compiled run as they
    were written, also in other networks of the same class: what is compiled for training, this tool decides.
    """
    for module in list(network.modules()):
        if _inside(module) is not None:
            continue
        for name, child in list(module._modules.items()):
            if child is not None:
                module._modules[name] = _innermost(child)
        vars(module).pop("_compiled_call_impl", None)
        for name, value in list(vars(module).items()):
            if (written := _as_written(value)) is not None:
                _set_method(module, name, written)
        for cls in type(module).__mro__:
            for name, value in list(vars(cls).items()):
                if (written := _as_written(value)) is not None:
                    setattr(cls, name, written)
    return _innermost(network)


def to_float32(network: nn.Module) -> str | None:
    """Brings a network's real parameters, buffers and tensor attributes into float32, in place; complex ones stay.

    Returns:
        What was done, in a sentence; None where nothing was to do.

    Raises:
        UserError: some of its weights have no values yet, because they were made on the meta device.
    """
    named = list(itertools.chain(network.named_parameters(), network.named_buffers()))
    empty = [name for name, tensor in named if tensor.is_meta]
    if empty:
        raise UserError(
            f"{type(network).__name__} has weights without values, on the meta device: {enumerated(empty, 10)}",
            "construct it on the CPU",
        )
    others = sorted({str(tensor.dtype).removeprefix("torch.") for _, tensor in named if _is_other_real(tensor)})
    if others:
        network.float()
    for module in network.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and _is_other_real(value):
                setattr(module, name, value.float())
    return f"{type(network).__name__} has weights in {' and '.join(others)}; it runs in float32" if others else None


def _is_other_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float32


def _innermost(module: nn.Module) -> nn.Module:
    while (inside := _inside(module)) is not None:
        module = inside
    return module


def _inside(module: nn.Module) -> nn.Module | None:
    """Returns the module that another only wraps, None where it is not a wrapper."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return module.module
    # Looked up, because importing the compiler takes a second; without it nothing is compiled.
    compiler: Any = sys.modules.get("torch._dynamo.eval_frame")
    if compiler is not None and isinstance(module, compiler.OptimizedModule):
        original: nn.Module = module._modules["_orig_mod"]
        return original
    return None


def _as_written(value: object) -> Callable[..., Any] | None:
    """Returns the function that `torch.compile` was given, None for everything but its result."""
    written: Callable[..., Any] | None = None
    while isinstance(value, FunctionType) and "_torchdynamo_orig_callable" in vars(value):
        if vars(value).get("_torchdynamo_disable", False):
            # The author's `torch.compiler.disable`.
            break
        written = value = vars(value)["_torchdynamo_orig_callable"]
    return written


def _set_method(module: nn.Module, name: str, written: Any) -> None:
    """Gives a module its method back: that of its class where it is the same, so that copies have their own."""
    if getattr(written, "__self__", None) is module and getattr(type(module), name, None) is written.__func__:
        del vars(module)[name]
    else:
        setattr(module, name, written)
