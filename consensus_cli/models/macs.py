"""Multiply-accumulates (MACs) of one forward pass, counted once for the whole network and for every module in it.

The network runs under a `TorchDispatchMode`, which sees what PyTorch really computes: an LSTM, an einsum, attention or
a convolution of any kind arrives as one of the few operators that multiply and add. Nothing is traced or scripted, so
that whatever runs can be counted. Convolutions and matrix products are counted by fvcore's formulas, whose "flops" are
MACs; fused attention by PyTorch's, which count a MAC as two flops; what neither knows by our own. An operator without
a formula has no MACs if it is elementwise, a reduction, a view or one of `_WITHOUT_MACS`; any other is named.
"""

from __future__ import annotations

import functools
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from consensus_cli.models.copying import clone
from consensus_cli.models.modes import evaluating, tensors_in, unfused_attention

#: (arguments, result) of an operator -> its MACs
Formula = Callable[[Sequence[Any], Any], int]

#: operators that move, choose, pool, normalise, interpolate or draw numbers; without the underscores around the names
_NAMES = """
    abs adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d add_relu aminmax arange
    as_strided assert_async assert_scalar assert_tensor_metadata avg_pool2d avg_pool3d bartlett_window
    batch_norm_elemt batch_norm_gather_stats batch_norm_gather_stats_with_counts batch_norm_no_update batch_norm_stats
    batch_norm_update_stats batch_norm_with_update bernoulli binary_cross_entropy binary_cross_entropy_with_logits
    bincount binomial blackman_window block_diag bucketize cat cauchy channel_shuffle chunk_cat col2im complex
    constant_pad_nd copy copysign cuda_version cudnn_batch_norm cudnn_grid_sampler cummax cummax_helper cummin
    cummin_helper cumprod cumsum dequantize dim dist efficientzerotensor embedding embedding_bag
    embedding_bag_forward_only embedding_renorm empty empty_like empty_permuted empty_strided eq exponential eye
    fake_quantize_per_channel_affine_cachemask fake_quantize_per_tensor_affine_cachemask
    fake_quantize_per_tensor_affine_cachemask_tensor_qparams fill flip floor_divide fractional_max_pool2d
    fractional_max_pool3d full full_like functional_assert_async functional_assert_scalar fused_rms_norm gather ge
    gelu geometric glu grid_sampler_2d grid_sampler_2d_cpu_fallback grid_sampler_3d gt hamming_window hann_window
    hardswish has_same_storage_numel heaviside histc huber_loss im2col index index_add index_copy index_fill index_put
    index_put_impl index_reduce index_select is_all_true is_any_true is_contiguous is_pinned is_same_size isin
    jagged_to_padded_dense_forward kaiser_window kthvalue layout lazy_clone le lift linalg_check_errors linalg_cross
    linspace local_scalar_dense log_normal log_sigmoid_forward log_softmax logcumsumexp logspace lt masked_fill
    masked_scatter masked_select masked_softmax max_pool2d_with_indices max_pool3d_with_indices max_unpool2d
    max_unpool3d median miopen_batch_norm mish mode mse_loss multinomial nanmedian narrow_copy native_batch_norm
    native_batch_norm_legit native_batch_norm_legit_no_training native_dropout native_group_norm native_layer_norm ne
    nested_tensor_from_tensor_list new_empty new_empty_strided new_full new_ones new_zeros nll_loss_forward nms
    nonzero nonzero_static normal normal_functional numel ones ones_like pack_padded_sequence
    padded_dense_to_jagged_forward pin_memory pixel_shuffle pixel_unshuffle poisson polar prelu_kernel ps_roi_align
    ps_roi_pool put quantize_per_channel quantize_per_tensor rand rand_like randint randint_like randn randn_like
    random randperm range record_stream reflection_pad1d reflection_pad2d reflection_pad3d renorm repeat
    repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape_copy resize resize_as roi_align
    roi_pool roll rot90 rrelu_with_noise rsub safe_softmax scalar_tensor scatter scatter_add scatter_reduce
    searchsorted segment_reduce set size smooth_l1_loss softmax sort stack stride sym_is_contiguous sym_numel sym_size
    sym_storage_offset sym_stride take thnn_fused_gru_cell thnn_fused_lstm_cell threshold to_copy to_padded_tensor
    to_sparse topk trace transform_bias_rescale_qkv tril tril_indices triu triu_indices uniform unique unique2
    unique_consecutive unique_dim unique_dim_consecutive unsafe_index unsafe_index_put unsafe_masked_index
    unsafe_split unsafe_split_with_sizes unsafe_view upsample_bicubic2d upsample_bicubic2d_aa upsample_bilinear2d
    upsample_bilinear2d_aa upsample_lanczos2d_aa upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_nearest_exact1d upsample_nearest_exact2d upsample_nearest_exact3d upsample_trilinear3d
    weight_norm_interface where xlogy zero zeros zeros_like
"""
_WITHOUT_MACS = frozenset(_NAMES.split())


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
    with ExitStack() as stack:
        # Scripted modules take no hooks: what runs in them counts for the module that they are part of.
        for module in (module for module in network.modules() if not isinstance(module, torch.jit.ScriptModule)):
            stack.enter_context(module.register_forward_pre_hook(recorder.enter))
            stack.enter_context(module.register_forward_hook(recorder.leave, always_call=True))
        # PyTorch refuses to compile, as flex_attention does by itself, what is being watched.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(evaluating(network))
        stack.enter_context(unfused_attention())
        stack.enter_context(recorder)
        network(sample)
    uncounted = tuple(f"{name} × {uses}" for name, uses in sorted(recorder.uncounted.items()))
    return MacCount({"": 0} | recorder.macs, uncounted)


class _Recorder(TorchDispatchMode):
    """Adds up MACs by path of the module that runs."""

    supports_higher_order_operators = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.macs: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()
        self._paths: defaultdict[nn.Module, list[str]] = defaultdict(list)
        for path, module in network.named_modules(remove_duplicate=False):
            self._paths[module].append(path)
        self._running: list[nn.Module] = []

    def enter(self, module: nn.Module, _args: Any) -> None:
        """Notes that a module starts."""
        self._running.append(module)

    def leave(self, *_: Any) -> None:
        """Notes that the module that started last ends."""
        self._running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operator = getattr(func, "overloadpacket", func)
        # Of ragged tensors, and of other kinds that are no plain ones, nothing is known: their operators are named.
        plain = not types and not any(tensor.is_nested for tensor in tensors_in([args, kwargs]))
        formula = _formula(operator, kwargs) if plain else None
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
        for path in {"", *(path for module in self._running for path in self._paths[module])}:
            self.macs[path] += macs


class _Shaped:
    """A tensor as fvcore's formulas see one: they were written for the values of a traced graph."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def isCompleteTensor(self) -> bool:  # noqa: N802
        return True

    def type(self) -> _Shaped:
        return self

    def sizes(self) -> list[int]:
        return list(self._tensor.shape)


def _formula(operator: Any, kwargs: Mapping[str, Any]) -> Formula | None:
    """Returns how the MACs of an operator (all overloads alike) are counted, None where nobody knows."""
    from torch.utils.flop_counter import flop_registry

    # addmm_ is addmm, written in place.
    known = _formulas().get(getattr(operator, "_qualified_op_name", "").rstrip("_"))
    if known is None and operator in flop_registry:
        return lambda args, result: flop_registry[operator](*args, **kwargs, out_val=result) // 2
    return known


@functools.cache
def _formulas() -> dict[str, Formula]:
    with warnings.catch_warnings():
        # fvcore compiles a loss function that nobody here uses with torch.jit.script, and torch says that is old.
        warnings.simplefilter("ignore", FutureWarning)
        from fvcore.nn.jit_handles import addmm_flop_jit, bmm_flop_jit, conv_flop_count, matmul_flop_jit

    def fvcore(formula: Callable[..., int], operands: int) -> Formula:
        return lambda args, _: formula([_Shaped(tensor) for tensor in args[:operands]], [])

    return {
        # args: input, weight, bias, stride, padding, dilation, transposed
        "aten::convolution": lambda args, out: conv_flop_count(args[0].shape, args[1].shape, out.shape, args[6]),
        "aten::mm": fvcore(matmul_flop_jit, 2),
        "aten::addmm": fvcore(addmm_flop_jit, 3),
        "aten::bmm": fvcore(bmm_flop_jit, 2),
        "aten::mv": lambda args, _: args[0].numel(),
        "aten::addmv": lambda args, _: args[1].numel(),
        "aten::dot": lambda args, _: args[0].numel(),
        "aten::vdot": lambda args, _: args[0].numel(),
        "aten::addr": lambda _, out: out.numel(),
        "aten::baddbmm": lambda args, _: args[1].numel() * args[2].shape[-1],
        "aten::addbmm": lambda args, _: args[1].numel() * args[2].shape[-1],
        "aten::_int_mm": lambda args, out: args[0].numel() * out.shape[-1],
        # input (length, batch, channels), weight (kernel, channels in, channels out)
        "aten::conv_tbc": lambda args, out: prod(out.shape[:2]) * args[1].numel(),
        "aten::affine_grid_generator": lambda args, out: out.numel() * args[0].shape[-1],
        "aten::cudnn_affine_grid_generator": lambda args, out: out.numel() * args[0].shape[-1],
        "aten::_cdist_forward": lambda args, out: out.numel() * args[0].shape[-1],
        "aten::_pdist_forward": lambda args, out: out.numel() * args[0].shape[-1],
        "aten::_euclidean_dist": lambda args, out: out.numel() * args[0].shape[-1],
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
    harmless = {torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.inplace_view}
    name = func.overloadpacket.__name__.strip("_")
    return func.is_view or name in _WITHOUT_MACS or not harmless.isdisjoint(func.tags)
