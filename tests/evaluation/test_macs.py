"""Multiply-accumulates, counted by hand: every operator is counted or named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.counted import Of, call, macs
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import deform_conv2d, roi_align

from consensus_cli.models.macs import MacCount, count_macs

CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (1, 4, 8, 8), 16 * 6 * 4 * 9),
    "padding same": (nn.Conv2d(4, 6, 3, padding="same"), (1, 4, 8, 8), 64 * 6 * 4 * 9),
    "padding same, even kernel": (nn.Conv2d(4, 6, 2, padding="same"), (1, 4, 8, 8), 64 * 6 * 4 * 4),
    "padding valid, dilated": (nn.Conv2d(4, 6, 3, padding="valid", dilation=2), (1, 4, 8, 8), 16 * 6 * 4 * 9),
    "reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (1, 4, 8, 8), 64 * 6 * 4 * 9),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (1, 4, 8, 8), 64 * 6 * 2 * 9),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (1, 4, 8, 8), 64 * 4 * 9),
    "without batch": (nn.Conv2d(4, 6, 3, padding=1), (4, 8, 8), 64 * 6 * 4 * 9),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), (1, 4, 5, 5), 25 * 4 * 6 * 9),
    "transposed, grouped": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (1, 4, 5, 5), 25 * 4 * 3 * 9),
    "1-D": (nn.Conv1d(4, 6, 3, padding="same"), (1, 4, 10), 10 * 6 * 4 * 3),
    "3-D": (nn.Conv3d(4, 6, 3, padding=1), (1, 4, 5, 5, 5), 125 * 6 * 4 * 27),
}


@pytest.mark.parametrize(("layer", "shape", "expected"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions(layer, shape, expected):
    assert macs(call, *shape, module=layer) == expected


ONES = torch.ones
PRODUCTS: dict[str, tuple[Callable[[Tensor], Any], tuple[int, ...], int]] = {
    "linear of tokens": (lambda x: F.linear(x, ONES(7, 8), ONES(7)), (1, 5, 8), 5 * 8 * 7),
    "matmul": (lambda x: x @ ONES(8, 3), (2, 5, 8), 10 * 8 * 3),
    "matrix by vector": (lambda x: x @ ONES(8), (5, 8), 5 * 8),
    "vector by vector": (lambda x: torch.dot(x, x), (8,), 8),
    "bmm": (lambda x: torch.bmm(x, ONES(2, 8, 3)), (2, 5, 8), 2 * 5 * 8 * 3),
    "baddbmm": (lambda x: torch.baddbmm(ONES(1), x, ONES(2, 8, 3)), (2, 5, 8), 2 * 5 * 8 * 3),
    "addmm in place": (lambda x: torch.zeros(5, 3).addmm_(x, ONES(8, 3)), (5, 8), 5 * 8 * 3),
    "addbmm": (lambda x: torch.addbmm(ONES(5, 3), x, ONES(2, 8, 3)), (2, 5, 8), 2 * 5 * 8 * 3),
    "addmv": (lambda x: torch.addmv(ONES(5), x, ONES(8)), (5, 8), 5 * 8),
    "addr": (lambda x: torch.addr(ONES(8, 3), x, ONES(3)), (8,), 8 * 3),
    "einsum": (lambda x: torch.einsum("bhid,bhjd->bhij", x, x), (1, 2, 5, 8), 2 * 5 * 5 * 8),
    "einsum with spaces": (lambda x: torch.einsum("q r s u, q r t u -> q r s t", x, x), (1, 2, 5, 8), 2 * 5 * 5 * 8),
    "einsum of three": (lambda x: torch.einsum("bi,ij,jk->bk", x, ONES(8, 3), ONES(3, 2)), (5, 8), 5 * 3 * (8 + 2)),
    "tensordot": (lambda x: torch.tensordot(x, ONES(8, 3), 1), (2, 5, 8), 10 * 8 * 3),
    "multi_dot": (lambda x: torch.linalg.multi_dot([x, ONES(8, 3), ONES(3, 2)]), (5, 8), 8 * 3 * 2 + 5 * 8 * 2),
    "bilinear": (lambda x: F.bilinear(x, x, ONES(7, 8, 8)), (5, 8), 5 * 7 * 8 * 8),
    "distances, few": (lambda x: torch.cdist(x, ONES(3, 8)), (5, 8), 5 * 3 * 8),
    "distances, many": (lambda x: torch.cdist(x, ONES(30, 8)), (40, 8), 40 * 30 * 8),
    "distances within": (F.pdist, (5, 8), 10 * 8),
    "convolution over time": (lambda x: torch.conv_tbc(x, ONES(3, 4, 6), ONES(6)), (5, 2, 4), 3 * 2 * 3 * 4 * 6),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), (1, 2, 5, 8), 2 * 2 * 25 * 8),
    "attention, causal": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), (1, 2, 5, 8), 800),
    "attention, masked": (lambda x: F.scaled_dot_product_attention(x, x, x, ONES(5, 5).bool()), (1, 2, 5, 8), 800),
    "attention, other values": (lambda x: F.scaled_dot_product_attention(x, x, x[..., :3]), (1, 2, 5, 8), 2 * 25 * 11),
    "attention, other keys": (
        lambda x: F.scaled_dot_product_attention(x, x[:, :, :3], x[:, :, :3]), (1, 2, 5, 8), 2 * 2 * 15 * 8,
    ),
    "attention, grouped queries": (
        lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True), (1, 4, 5, 8), 4 * 2 * 25 * 8,
    ),
    "attention of three dimensions": (lambda x: F.scaled_dot_product_attention(x, x, x), (2, 5, 8), 800),
    "deformable": (
        lambda x: deform_conv2d(x, torch.zeros(1, 18, 8, 8), ONES(6, 2, 3, 3), padding=1), (1, 4, 8, 8), 64 * 6 * 2 * 9,
    ),
    "affine grid": (lambda x: F.affine_grid(x, [1, 4, 6, 6], align_corners=False), (1, 2, 3), 36 * 2 * 3),
}  # fmt: skip


@pytest.mark.parametrize(("function", "shape", "expected"), PRODUCTS.values(), ids=PRODUCTS)
def test_products(function, shape, expected, monkeypatch):
    # Where the package opt_einsum is installed, it looks for a cheaper order of three factors.
    monkeypatch.setattr(torch.backends.opt_einsum, "enabled", False)
    assert macs(function, *shape) == expected


class Attends(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, **self.options)[0]


PROJECTIONS, ATTENTION = 4 * 5 * 8 * 8, 2 * 5 * 5 * 8
LAYER = PROJECTIONS + ATTENTION + 2 * 5 * 8 * 16


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (Attends(), PROJECTIONS + ATTENTION),
        (Attends(need_weights=False), PROJECTIONS + ATTENTION),
        (Attends(attn_mask=torch.zeros(5, 5)), PROJECTIONS + ATTENTION),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), LAYER),
        (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3), 3 * LAYER),
    ],
    ids=["attention", "attention without weights", "masked attention", "encoder layer", "encoder"],
)
def test_transformer_layers_with_and_without_their_fused_kernels(layer, expected):
    assert macs(call, 1, 5, 8, module=layer) == expected
    assert torch.backends.mha.get_fastpath_enabled()


def matrices(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.ndim == 2)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 3}, {"bidirectional": True, "batch_first": True}], ids=str)
def test_recurrent_layers_use_every_matrix_once_a_step(kind, options):
    layer = kind(4, 6, **options)
    assert macs(lambda m, x: m(x)[0], 5, 3, 4, module=layer) == 15 * matrices(layer)


def test_recurrent_layers_by_hand_and_of_other_forms():
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}
    assert all(macs(lambda m, x: m(x)[0], 5, 3, 4, module=k(4, 6)) == 15 * n * 6 * (4 + 6) for k, n in gates.items())
    assert macs(lambda m, x: m(x)[0], 5, 4, module=nn.LSTM(4, 6)) == 5 * 24 * 10  # without a batch
    assert macs(lambda m, x: m(x)[0], 5, 3, 4, module=nn.LSTM(4, 6, proj_size=2)) == 15 * (24 * 4 + 24 * 2 + 2 * 6)
    assert macs(lambda m, x: m(x)[0], 3, 4, module=nn.LSTMCell(4, 6)) == 3 * 24 * 10
    assert macs(call, 3, 4, module=nn.GRUCell(4, 6)) == 3 * 18 * 10

    def packed(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(nn.utils.rnn.pack_padded_sequence(x, [3, 2], batch_first=True))[0].data

    assert macs(packed, 2, 3, 4, module=nn.LSTM(4, 6, batch_first=True)) == 5 * 24 * 10


FREE: dict[str, Callable[[Tensor], Any]] = {
    "embedding": lambda x: F.embedding(x.long().flatten(), ONES(10, 3)),
    "grid_sample": lambda x: F.grid_sample(x, torch.zeros(1, 8, 8, 2), align_corners=False),
    "interpolation": lambda x: F.interpolate(F.interpolate(x, scale_factor=2, mode="bilinear"), size=5, mode="bicubic"),
    "pooling": lambda x: F.adaptive_avg_pool2d(F.max_pool2d(F.avg_pool2d(x, 2), 2), 1),
    "norms": lambda x: F.group_norm(F.layer_norm(F.batch_norm(x, ONES(4), ONES(4)), (8, 8)), 2).norm(dim=1),
    "activations": lambda x: F.glu(F.hardswish(F.mish(F.gelu(F.prelu(F.hardswish(x, inplace=True), ONES(1)))))),
    "softmax": lambda x: F.log_softmax(x.softmax(1), 1).logsumexp(1),
    "moving": lambda x: torch.cat([x, F.pad(x.flip(1).roll(1), (1, 1, 1, 1), "reflect")[..., 1:9, 1:9]])[
        :, [0, 2]
    ].sort(),
    "folding": lambda x: F.fold(F.unfold(F.pixel_shuffle(x, 2), 2), 16, 2).repeat(1, 2, 1, 1).cumsum(1),
    "roi": lambda x: roi_align(x, torch.zeros(1, 5), 3),
    "random": lambda x: F.dropout(x + torch.randn_like(x) + torch.arange(8), 0.5),
}


@pytest.mark.parametrize("function", FREE.values(), ids=FREE)
def test_what_has_no_macs_is_neither_counted_nor_named(function):
    assert macs(function, 1, 4, 8, 8) == 0


@torch.library.custom_op("consensus_tests::squared", mutates_args=())
def squared(x: Tensor) -> Tensor:
    return x @ x


NAMED: dict[str, tuple[Callable[[Tensor], Any], tuple[str, ...]]] = {
    "Fourier": (
        lambda x: torch.fft.irfft2(torch.fft.rfft2(torch.fft.irfft2(torch.fft.rfft2(x)))),
        ("aten::_fft_c2r × 2", "aten::_fft_r2c × 2"),
    ),
    "inverse": (torch.linalg.inv, ("aten::linalg_inv_ex × 1",)),
    "an operator of one's own": (squared, ("consensus_tests::squared × 1",)),
    "sparse": (lambda x: torch.sparse.mm(x.to_sparse(), x), ("aten::_sparse_addmm × 1",)),
}
if hasattr(TorchDispatchMode, "supports_higher_order_operators"):
    NAMED["a branch"] = (lambda x: torch.cond(x.sum() > 0, lambda y: y @ y, lambda y: y, (x,)), ("cond × 1",))


@pytest.mark.parametrize(("function", "named"), NAMED.values(), ids=NAMED)
def test_what_nobody_has_a_formula_for_is_named_beside_what_is_counted(function, named):
    count = count_macs(Of(lambda x: function(x @ torch.eye(4))), torch.eye(4))
    assert count == MacCount({"": 64}, named)


def test_a_formula_of_ones_own_is_used(monkeypatch):
    monkeypatch.setitem(
        torch.utils.flop_counter.flop_registry,
        torch.ops.consensus_tests.squared,
        lambda x, *, out_val: 2 * x.shape[0] ** 3,
    )
    assert macs(lambda x: squared(x).clone(), 4, 4) == 64
