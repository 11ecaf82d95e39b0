"""What one forward pass computes: every operation, the values it reads and writes, and the module it runs in.

The network runs once, in eval mode, on one example, under a `TorchDispatchMode` that sees each operation of PyTorch
below all Python code, with hooks that note when a module starts and ends. Unlike symbolic tracing (torch.fx) or
`torch.export`, this cannot fail on control flow, on keyword arguments or on modules of any kind, because nothing but
the real computation takes place; so one mechanism serves every network that runs at all. Additions written as part of
another operation (`addcmul`, `torch.stack(...).sum`) are not seen as additions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from consensus_cli.models.modes import WatchMode, evaluating, following, tensors_in, uncompiled, unfused_attention

#: operations whose result holds the same elements in the same order as their first argument
SAME_ELEMENTS = {
    "_reshape_alias", "_reshape_copy", "_to_copy", "_unsafe_view", "alias", "clone", "detach", "lift_fresh", "squeeze",
    "unsqueeze", "view",
}  # fmt: skip

#: operations whose result holds elements of their first argument, or of the tensors listed in it, in another place
REARRANGING = {
    "cat", "constant_pad_nd", "flip", "im2col", "narrow", "permute", "roll", "select", "slice", "split",
    "split_with_sizes", "stack", "t", "transpose", "unbind", "unfold",
}  # fmt: skip

#: operations that change nothing with this number: `sum([x, f(x)])` begins with x + 0
_NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1}


@dataclass(frozen=True)
class Op:
    """One operation: `add_` and `add` are both `add`; values are numbers into `Trace`.

    Attributes:
        rearrange: does to other tensors what a rearranging operation did to its inputs; None for all others.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    call: int
    scale: float = 1.0
    rearrange: Callable[[list[Tensor]], list[Tensor]] | None = None


@dataclass
class Call:
    """One call of a module: operations `start` to `end` (exclusive) ran inside it.

    Attributes:
        path: dotted name of the module; empty for the network itself.
        parent: index of the call it was made in; −1 for the network's own.
        inputs: values of the tensors it was given, in order.
        outputs: values it returned, None where an element is not a tensor.
        returns_tensor: whether it returned one bare tensor, as opposed to several values in some container.
        returns_sequence: whether it returned a plain tuple or list.
    """

    path: str
    parent: int
    start: int
    inputs: tuple[int, ...]
    end: int = -1
    outputs: tuple[int | None, ...] = ()
    returns_tensor: bool = False
    returns_sequence: bool = False


@dataclass
class Trace:
    """The data flow of one forward pass.

    Values are numbered in order of creation. Writing in place makes a new value of the same tensor.

    Attributes:
        ops: operations in order of execution.
        calls: module calls in order of their start; the first is the network's own.
        shapes: shape of each value, with the batch dimension.
        producers: index of the operation that made a value; −1 for the example, parameters and constants.
        same: the earliest value that holds the same elements in the same order (itself for most).
        ancestors: per value a bit set of the values (as in `same`) that it is computed from, itself included.
        untouched_by: path of the module that returned a value just as it was given (dropout in eval mode, identity).
        readers: per value the operations that read it, in order.
    """

    ops: list[Op] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    producers: list[int] = field(default_factory=list)
    same: list[int] = field(default_factory=list)
    ancestors: list[int] = field(default_factory=list)
    untouched_by: dict[int, str] = field(default_factory=dict)
    readers: list[list[int]] = field(default_factory=list)

    def depends(self, value: int, on: int) -> bool:
        """Whether `value` is computed from the value `on` (or holds the same elements)."""
        return bool(self.ancestors[value] >> self.same[on] & 1)

    def within(self, inner: int, outer: int) -> bool:
        """Whether call `inner` ran inside call `outer` (or is it)."""
        while inner > outer:
            inner = self.calls[inner].parent
        return inner == outer


class _Recorder(WatchMode):
    """Fills a trace. Keeps every tensor alive, so that neither a tensor's id nor its storage is ever used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace()
        self.stack = [-1]
        self._values: dict[int, int] = {}
        # By `_cdata`, the identity of a storage: on the device "meta" all have the same `data_ptr()`.
        self._tensors_of_storage: dict[int, list[Tensor]] = {}

    def value(self, tensor: Tensor) -> int:
        """Returns the number of the value a tensor holds now."""
        if id(tensor) not in self._values:
            self._register(tensor, producer=-1, sources=())
        return self._values[id(tensor)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        reads = tuple(self.value(tensor) for tensor in tensors_in((args, kwargs)))
        # No public function says what an operator overwrites; tests/pruning has blocks that do.
        written = [
            tensor
            for position, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in tensors_in(args[position] if position < len(args) else kwargs.get(argument.name))
        ]
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__.rstrip("_")
        index = len(self.trace.ops)
        for tensor in written:
            self._overwrite(tensor, index, reads)
        for tensor in tensors_in(result):
            if id(tensor) not in self._values:
                self._register(tensor, index, reads)
                self._mark_same(name, tensor, reads, args)
        for value in reads:
            self.trace.readers[value].append(index)
        outputs = tuple(self.value(tensor) for tensor in tensors_in([*written, result]))
        scale = kwargs.get("alpha", 1.0)
        again = _rearranging(func, args, kwargs) if name in REARRANGING and not written else None
        self.trace.ops.append(Op(name, reads, tuple(dict.fromkeys(outputs)), self.stack[-1], scale, again))
        return result

    def enter(self, path: str, inputs: Any) -> None:
        """Notes that a module starts."""
        call = Call(path, self.stack[-1], len(self.trace.ops), tuple(self.value(t) for t in tensors_in(inputs)))
        self.stack.append(len(self.trace.calls))
        self.trace.calls.append(call)

    def leave(self, output: Any) -> Any:
        """Notes that a module ends; a tensor it returned untouched comes back as a view, to tell the two apart."""
        call = self.trace.calls[self.stack[-1]]
        if isinstance(output, Tensor) and self.value(output) in call.inputs:
            output = output.view_as(output)
            self.trace.untouched_by[self.value(output)] = call.path
        self.stack.pop()
        call.end = len(self.trace.ops)
        call.returns_tensor = isinstance(output, Tensor)
        call.returns_sequence = type(output) in (tuple, list)
        elements = output if isinstance(output, list | tuple) else list(tensors_in([output]))
        call.outputs = tuple(self.value(e) if isinstance(e, Tensor) else None for e in elements)
        return output

    def _register(self, tensor: Tensor, producer: int, sources: tuple[int, ...]) -> None:
        self._tensors_of_storage.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)
        self._values[id(tensor)] = self._new_value(tensor, producer, sources)

    def _new_value(self, tensor: Tensor, producer: int, sources: tuple[int, ...]) -> int:
        trace = self.trace
        value = len(trace.same)
        ancestors = 1 << value
        for source in sources:
            ancestors |= trace.ancestors[source]
        trace.same.append(value)
        trace.ancestors.append(ancestors)
        trace.shapes.append(tuple(tensor.shape))
        trace.producers.append(producer)
        trace.readers.append([])
        return value

    def _overwrite(self, tensor: Tensor, op: int, reads: tuple[int, ...]) -> None:
        """Gives a tensor that was written to, and every view of the same memory, new values."""
        before = self.trace.same[self.value(tensor)]
        after = self._new_value(tensor, op, reads)
        for view in self._tensors_of_storage[tensor.untyped_storage()._cdata]:
            held = self.value(view)
            if view is tensor:
                self._values[id(view)] = after
                continue
            self._values[id(view)] = value = self._new_value(view, op, (*reads, held))
            if self.trace.same[held] == before:
                self._unify(value, after)

    def _mark_same(self, name: str, tensor: Tensor, reads: tuple[int, ...], args: tuple[Any, ...]) -> None:
        number = args[1] if len(args) == 2 and isinstance(args[1], int | float) else None
        changes_nothing = name in SAME_ELEMENTS or (number is not None and _NEUTRAL.get(name) == number)
        if changes_nothing and len(reads) == 1 and tensor.dtype.is_floating_point:
            self._unify(self.value(tensor), reads[0])

    def _unify(self, value: int, with_value: int) -> None:
        self.trace.same[value] = self.trace.same[with_value]
        self.trace.ancestors[value] = self.trace.ancestors[with_value]


def _rearranging(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[list[Tensor]], list[Tensor]]:
    # Tensors beside the first argument would be kept alive, but these operations have none.
    of_several, others = isinstance(args[0], list | tuple), args[1:]
    return lambda tensors: list(tensors_in([func(tensors if of_several else tensors[0], *others, **kwargs)]))


def trace(network: nn.Module, example: Tensor) -> Trace:
    """Runs a network once on the first sample of an example and returns what it computed.

    Args:
        network: any module that maps one batch to an output; its modes, parameters and hooks are left as they were.
        example: (n, ...) a batch on the network's device; only its first sample is used.
    """
    recorder = _Recorder()
    followed = following(network, recorder.enter, recorder.leave)
    # The network may overwrite what it is given.
    image = example[:1].clone()
    with followed, evaluating(network), unfused_attention(), uncompiled(), recorder:
        network(image)
    return recorder.trace
