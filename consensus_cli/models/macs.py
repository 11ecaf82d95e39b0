"""Multiply-accumulates (MACs) of one forward pass, counted once for the whole network and for every module in it.

The network runs under a `TorchDispatchMode`, which sees what PyTorch really computes: an LSTM, an einsum, attention or
a convolution of any kind arrives as one of the few operators that multiply and add. Nothing is traced or scripted, so
that whatever runs can be counted. Convolutions are counted by fvcore's formula, whose "flops" are MACs; matrix products
and fused attention by PyTorch's, which count a MAC as two flops; what neither knows by our own. An operator without a
formula has no MACs if it is elementwise, a view or one of `_WITHOUT_MACS`; any other is named.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from consensus_cli.models.copying import clone
from consensus_cli.models.modes import WatchMode, evaluating, following, tensors_in, uncompiled, unfused_attention

#: (arguments, result) of an operator -> its MACs
Formula = Callable[[Sequence[Any], Any], int]

#: PyTorch's operators that move, choose, pool, normalise, interpolate or draw numbers; without underscores around names
_WITHOUT_MACS = re.compile(
    r"""
      (adaptive_|fractional_)?(avg|max)_(un)?pool[23]d\w* | \w*(batch|group|layer|rms)_norm\w* | weight_norm\w*
    | \w*_pad(_nd|[123]d) | upsample_\w* | (ps_)?roi_\w+ | (cudnn_)?grid_sampler\w* | (pixel|channel)_\w*shuffle
    | \w+_window | (new_)?(empty|full|ones|zeros)\w* | \w*range | \w*space | rand\w* | (log_)?normal\w* | uniform
    | (as_)?strided | sort | unique\w* | repeat\w* | resize\w* | cat | chunk_cat | stack | flip | roll | rot90
    | (unsafe_)?(masked_)?(index|scatter|gather|select|fill|softmax)\w* | \w*_softmax | put | set | take | where
    | sym_\w+ | is_\w+ | has_\w+ | \w*assert\w* | embedding\w* | fake_quantize_\w+cachemask\w* | quantize_\w+
    | cum(max|min|prod|sum)\w* | logcumsumexp | tril\w* | triu\w* | \w*loss\w* | binary_cross_entropy\w* | \w*median
    | (nan)?sum | prod | mean | (std|var)(_mean)? | all | any | (arg|a)?(max|min) | count_nonzero | logsumexp
    | norm | linalg_(_powsum|vector_norm)
    | eq | ne | ge | gt | le | lt | abs | add_relu | aminmax | bernoulli | bincount | binomial | block_diag | bucketize
    | cauchy | col2im | complex | copy | copysign | cuda_version | dequantize | dim | dist | efficientzerotensor
    | exponential | eye | floor_divide | gelu | geometric | glu | hardswish | heaviside | histc | im2col | isin
    | jagged_to_padded_dense_forward | kthvalue | layout | lazy_clone | lift | linalg_check_errors | linalg_cross
    | local_scalar_dense | log_sigmoid_forward | mish | mode | multinomial | narrow_copy | native_dropout
    | nested_tensor_from_tensor_list | nms | nonzero\w* | numel | pack_padded_sequence | padded_dense_to_jagged_forward
    | pin_memory | poisson | polar | prelu_kernel | randperm | record_stream | renorm | reshape_copy | rrelu_with_noise
    | rsub | scalar_tensor | searchsorted | segment_reduce | size | stride | thnn_fused_(gru|lstm)_cell | threshold
    | to_(copy|padded_tensor|sparse) | topk | trace | transform_bias_rescale_qkv | unsafe_split\w* | unsafe_view | xlogy
    | zero
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class MacCount:
    """The MACs of one forward pass.

    Attributes:
        by_module: MACs by dotted path of the module in which they ran, "" for the whole network; a module without any
            is missing, one that hangs under several paths counts under each.
        uncounted: what may multiply and add but has no formula, as `operator × uses`, sorted.
    """

    by_module: dict[str, int]
    uncounted: tuple[str, ...]

    @property
    def total(self) -> int:
        """MACs of the whole network."""
        return self.by_module[""]


def count_macs(network: nn.Module, sample: Tensor) -> MacCount:
    """Counts the MACs of one forward pass, in eval mode.

    A copy of the network runs, for some keep what they compute in their first pass.

    Args:
        network: any module that takes one batch.
        sample: (1, ...) the batch, on the network's device.
    """
    network = clone(network)
    recorder = _Recorder(network)
    # Scripted modules are not followed: what runs in them counts for the module that they are part of.
    followed = following(network, recorder.enter, recorder.leave)
    with followed, uncompiled(), unfused_attention(), evaluating(network), recorder:
        network(sample)
    uncounted = tuple(f"{name} × {uses}" for name, uses in sorted(recorder.uncounted.items()))
    return MacCount({"": 0} | recorder.macs, uncounted)


class _Recorder(WatchMode):
    """Adds up MACs by path of the module that runs."""

    supports_higher_order_operators = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.macs: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()
        paths: defaultdict[nn.Module, list[str]] = defaultdict(list)
        for path, module in network.named_modules(remove_duplicate=False):
            paths[module].append(path)
        self._names = {names[0]: names for names in paths.values()}
        self._running: list[str] = []

    def enter(self, path: str, _given: Any) -> None:
        """Notes that a module starts."""
        self._running.append(path)

    def leave(self, *_: Any) -> None:
        """Notes that the module that started last ends."""
        self._running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operator = getattr(func, "overloadpacket", func)
        # Of ragged tensors, and other special kinds, nothing is known: their operators are named.
        plain = not types and not any(tensor.is_nested for tensor in tensors_in([args, kwargs]))
        formula = _formula(func, operator, kwargs) if plain else None
        if formula is None and plain and operator is not func:
            # What is made of other operators arrives whole where the network switches to inference mode itself.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self._add(formula(args, result))
        elif not _without_macs(func):
            self.uncounted[getattr(operator, "_qualified_op_name", str(operator))] += 1
        return result

    def _add(self, macs: int) -> None:
        for name in {"", *(alias for path in self._running for alias in self._names[path])}:
            self.macs[name] += macs


def _formula(func: Any, operator: Any, kwargs: Mapping[str, Any]) -> Formula | None:
    """Returns how the MACs of an operator (all overloads alike) are counted; None: it has none, or nobody knows."""
    # addmm_ is addmm, written in place.
    known = _formulas().get(getattr(operator, "_qualified_op_name", "").rstrip("_"))
    if known is not None or _without_macs(func):
        return known
    from torch.utils.flop_counter import flop_registry

    if operator not in flop_registry:
        return None
    return lambda args, result: flop_registry[operator](*args, **kwargs, out_val=result) // 2


@functools.cache
def _formulas() -> dict[str, Formula]:
    with warnings.catch_warnings():
        # fvcore compiles a loss function that nobody here uses with torch.jit.script, and torch says that is old.
        warnings.simplefilter("ignore", FutureWarning)
        from fvcore.nn.jit_handles import conv_flop_count

    def by_last_operand(args: Sequence[Any], out: Any) -> int:
        """Products whose result has one number per MAC but for the dimension that is summed over."""
        return out.numel() * args[0].shape[-1]

    return {
        # args: input, weight, bias, stride, padding, dilation, transposed
        "aten::convolution": lambda args, out: conv_flop_count(args[0].shape, args[1].shape, out.shape, args[6]),
        "aten::addmm": lambda args, out: out.numel() * args[1].shape[-1],
        "aten::mv": lambda args, _: args[0].numel(),
        "aten::addmv": lambda args, _: args[1].numel(),
        "aten::dot": lambda args, _: args[0].numel(),
        "aten::vdot": lambda args, _: args[0].numel(),
        "aten::addr": lambda _, out: out.numel(),
        "aten::addbmm": lambda args, _: args[1].numel() * args[2].shape[-1],
        "aten::_int_mm": by_last_operand,
        # query (…, m, d), key (…, n, d), value (…, n, e); PyTorch itself counts it from 2.9 on
        "aten::_scaled_dot_product_flash_attention_for_cpu": lambda args, _: (
            prod(args[0].shape[:-1]) * args[1].shape[-2] * (args[0].shape[-1] + args[2].shape[-1])
        ),
        # input (length, batch, channels), weight (kernel, channels in, channels out)
        "aten::conv_tbc": lambda args, out: prod(out.shape[:2]) * args[1].numel(),
        "aten::affine_grid_generator": by_last_operand,
        "aten::cudnn_affine_grid_generator": by_last_operand,
        "aten::_cdist_forward": by_last_operand,
        "aten::_pdist_forward": by_last_operand,
        "aten::_euclidean_dist": by_last_operand,
        "aten::_trilinear": _trilinear,
        "aten::mkldnn_rnn_layer": lambda args, _: _recurrent(args[0], args[1:5]),
        "aten::_cudnn_rnn": lambda args, _: _recurrent(args[0], args[1]),
        "aten::miopen_rnn": lambda args, _: _recurrent(args[0], args[1]),
        # The weights at every output position, as in a convolution; interpolating what they are laid on is not counted.
        "torchvision::deform_conv2d": lambda args, out: out.numel() // out.shape[1] * args[1].numel(),
    }


def _recurrent(inputs: Tensor, weights: Sequence[Tensor]) -> int:
    """Every matrix of every layer and direction once per step; `inputs`: (..., features), packed or not."""
    return prod(inputs.shape[:-1]) * sum(weight.numel() for weight in weights if weight.ndim == 2)


def _trilinear(args: Sequence[Any], _result: Any) -> int:
    """The product of three tensors, each spread along the dimensions that it lacks, before some are summed over."""
    spread = []
    for tensor, expanded in zip(args[:3], args[3:6], strict=True):
        for dimension in expanded:
            tensor = tensor.unsqueeze(dimension)  # noqa: PLW2901
        spread.append(tensor)
    return prod(torch.broadcast_shapes(*(tensor.shape for tensor in spread)))


def _without_macs(func: Any) -> bool:
    """Whether an operator is known to multiply and add nothing that a paper would count."""
    if not isinstance(func, torch._ops.OpOverload):
        return False
    harmless = {torch.Tag.pointwise, torch.Tag.inplace_view}
    name = func.overloadpacket.__name__.strip("_")
    known = func.namespace in ("aten", "torchvision") and _WITHOUT_MACS.fullmatch(name) is not None
    return known or func.is_view or not harmless.isdisjoint(func.tags)
