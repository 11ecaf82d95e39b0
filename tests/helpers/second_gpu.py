"""The second GPU of a machine that has none: tensors on it refuse to meet tensors that are elsewhere.

They are tensors on the CPU whose class says where they are. A `TorchFunctionMode` sees every operation of the code
under test, and does what PyTorch does with GPUs: it refuses operands that are on different devices, generators of
another device and `numpy()`, and lets a result be where its operands are. A device without a number is the first GPU,
which is the current one; tests use the second, so that code which forgets the number fails as well.

Below Python nothing changes: autograd, views, in-place operations and autocast are PyTorch's own. Unlike FakeTensors,
tensors have values and gradients; unlike a backend for PrivateUse1, nothing is registered that outlives the test, and
what the code does only on `cuda` is run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import consensus_cli
from consensus_cli.models.modes import tensors_in

CPU, FIRST, SECOND = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)

_PACKAGE = Path(consensus_cli.__file__).parent

#: a place in the package: file and line
Site = tuple[str, int]

_READING = {Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}

_classes: dict[tuple[type, torch.device], type] = {}


def place(tensor: Tensor) -> torch.device:
    """Returns where a tensor is."""
    return getattr(type(tensor), "place", CPU)


def _put(tensor: Tensor, device: torch.device) -> Tensor:
    """Says of a tensor that it is somewhere."""
    kind = type(tensor)
    plain = kind.__base__ if hasattr(kind, "place") else kind
    if device == CPU:
        tensor.__class__ = plain
        return tensor
    if (plain, device) not in _classes:
        own = {"place": device, "__torch_function__": torch._C._disabled_torch_function_impl}
        _classes[plain, device] = type(plain)(f"{plain.__name__}On{device.index}", (plain,), own)
    tensor.__class__ = _classes[plain, device]
    return tensor


@dataclass
class SecondGPU(TorchFunctionMode):
    """While it is active, `cuda` is there.

    Attributes:
        sites: where the package has brought or made tensors there.
        left: a place where it forgets to; the tensor is then left on the CPU.
        synchronized: devices that were waited for.
    """

    left: Site | None = None
    sites: set[Site] = field(default_factory=set)
    synchronized: list[torch.device] = field(default_factory=list)
    current: torch.device = FIRST

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _GETTERS and isinstance(args[0], Tensor):
            return _GETTERS[func](place(args[0]))
        if func is torch._has_compatible_shallow_copy_type:
            return place(args[0]) == place(args[1])
        if func is Tensor.__deepcopy__:
            return self._copied(*args)
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._moved(func, args, kwargs)
        if func is Tensor.data.__set__:
            func(*args)
            return _put(args[0], place(args[1]))
        given = list(tensors_in((args, kwargs)))
        home = _common(func, args, given)
        if func in _READING and home != CPU:
            raise TypeError(f"can't convert {home} device type tensor to numpy. Use Tensor.cpu() first.")
        target = self._device(kwargs.get("device")) or home
        if "device" in kwargs:
            kwargs["device"] = target if target.type == "meta" else CPU
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != target.type:
            raise RuntimeError(f"Expected a '{target.type}' device type for generator but found '{generator.device}'")
        with _autocast(home):
            result = func(*args, **kwargs)
        if target != CPU and home == CPU and self._forgotten():
            target = CPU
        known = {id(tensor) for tensor in given}
        for tensor in tensors_in(result):
            if id(tensor) not in known and target.type != "meta":
                _put(tensor, target)
        return result

    def _moved(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        tensor, *words = args
        home, copy = place(tensor), kwargs.pop("copy", False)
        if func is Tensor.to:
            like = kwargs.pop("other", None) or (words[0] if words and isinstance(words[0], Tensor) else None)
            words = [like.dtype, *words[1:]] if like is not None else words
            device, dtype, _, layout = _parse_to(*words, **kwargs)
            target = place(like) if like is not None else self._device(device) or home
        else:
            number = kwargs.get("device", words[0] if words else None)
            target = CPU if func is Tensor.cpu else self._device("cuda" if number is None else number)
            dtype, layout = None, kwargs.get("memory_format")
        if target.type == "meta":
            return tensor.to(target, dtype)
        if target != home and home == CPU and self._forgotten():
            target = CPU
        layout = layout or torch.preserve_format
        result = tensor.to(CPU, dtype or tensor.dtype, copy=copy or target != home, memory_format=layout)
        return result if result is tensor else _put(result, target)

    def _copied(self, tensor: Tensor, memo: dict[int, Any]) -> Tensor:
        home = place(tensor)
        copied = _put(tensor, CPU).__deepcopy__(memo)
        _put(tensor, home)
        return _put(copied, home)

    def _device(self, asked: Any) -> torch.device | None:
        if asked is None:
            return None
        device = torch.device("cuda", asked) if isinstance(asked, int) else torch.device(asked)
        return self.current if device == torch.device("cuda") else device

    def _forgotten(self) -> bool:
        """Notes the line of the package that brings a tensor here, and returns whether it is to forget that."""
        frame = sys._getframe(2)
        while frame is not None and _PACKAGE not in Path(frame.f_code.co_filename).parents:
            frame = frame.f_back
        if frame is None:
            return False
        site = str(Path(frame.f_code.co_filename).relative_to(_PACKAGE)), frame.f_lineno
        self.sites.add(site)
        return site == self.left

    @contextmanager
    def active(self) -> Iterator[SecondGPU]:
        """Runs the body on a machine with two GPUs."""

        def synchronize(device: Any = None) -> None:
            self.synchronized.append(self._device("cuda" if device is None else device))

        @contextmanager
        def current(device: Any) -> Iterator[None]:
            before, self.current = self.current, self._device(device) or self.current
            yield
            self.current = before

        there = {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: 2,
            "current_device": lambda: self.current.index,
            "is_bf16_supported": lambda including_emulation=True: True,
            "get_device_name": lambda device=None: "second GPU",
            "synchronize": synchronize,
            "device": current,
            "empty_cache": lambda: None,
            "is_current_stream_capturing": lambda: False,
            "manual_seed_all": lambda seed: None,
            "get_rng_state": lambda device=None: torch.zeros(1, dtype=torch.uint8),
            "set_rng_state": lambda state, device=None: None,
            "get_rng_state_all": lambda: [torch.zeros(1, dtype=torch.uint8)] * 2,
            "set_rng_state_all": lambda states: None,
            "reset_peak_memory_stats": lambda device=None: None,
            "memory_allocated": lambda device=None: 0,
            "max_memory_allocated": lambda device=None: 2**20,
        }
        with ExitStack() as stack:
            stack.enter_context(mock.patch.multiple(torch.cuda, **there))
            stack.enter_context(mock.patch("torch.cuda.random.manual_seed", autospec=True))
            # What optimisers ask whether they are recorded for later.
            stack.enter_context(mock.patch("torch.accelerator.current_accelerator", return_value=None))
            # There is no NVML, whose windows must be long.
            stack.enter_context(mock.patch("consensus_cli.evaluation.cost.energy.GPU_WINDOW_S", 0.0))
            stack.enter_context(mock.patch.object(torch._C._nn, "_parse_to", _parsed_to))
            stack.enter_context(self)
            yield self


_parse_to = torch._C._nn._parse_to


def _parsed_to(*words: Any, **kwargs: Any) -> Any:
    """Reads what `nn.Module.to` is given; of a tensor where it is."""
    device, *others = _parse_to(*words, **kwargs)
    return (place(words[0]) if words and isinstance(words[0], Tensor) else device, *others)


_GETTERS = {
    Tensor.device.__get__: lambda device: device,
    Tensor.is_cuda.__get__: lambda device: device.type == "cuda",
    Tensor.is_cpu.__get__: lambda device: device.type == "cpu",
    Tensor.get_device: lambda device: -1 if device.index is None else device.index,
}


def _common(func: Any, args: Any, given: list[Tensor]) -> torch.device:
    """Returns where operands are together; a number from the CPU may be among those of a GPU, as in PyTorch.

    Raises:
        RuntimeError: they are in several places.
    """
    places = {place(tensor) for tensor in given if tensor.ndim} or {place(tensor) for tensor in given}
    places |= {place(tensor) for tensor in given} - {CPU}
    if len(places) < 2:
        return places.pop() if places else CPU
    if func is Tensor.copy_:
        return place(args[0])
    # PyTorch lets positions and values that are written come from the CPU, and the GPU waits for them. Other packages
    # do that; ours does not.
    moving = {Tensor.__setitem__, Tensor.__getitem__} if place(args[0]) != CPU else {Tensor.__setitem__}
    if func in moving and _PACKAGE not in Path(sys._getframe(2).f_code.co_filename).parents:
        return place(args[0])
    name = getattr(func, "__name__", func)
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, "
        f"{' and '.join(sorted(map(str, places)))}! ({name})"
    )


@contextmanager
def _autocast(home: torch.device) -> Iterator[None]:
    """Lets autocast do for tensors of a device what was asked for its type."""
    on_gpu, on_cpu = torch.is_autocast_enabled("cuda"), torch.is_autocast_enabled("cpu")
    if home == CPU or (not on_gpu and not on_cpu):
        yield
        return
    with torch.autocast("cpu", torch.get_autocast_dtype("cuda"), enabled=on_gpu):
        yield
