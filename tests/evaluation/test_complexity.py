from __future__ import annotations

import pytest
import torch
from helpers.counted import COUNTED_BY_TORCH
from helpers.evaluation_networks import small_conv_net
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VisionTransformer

from consensus_cli.evaluation.cost.complexity import complexity, latency_ms, peak_memory_mib
from consensus_cli.evaluation.cost.cost_comparison import complexity_columns, file_size_columns
from consensus_cli.evaluation.statistics import paired_reduction_pct
from consensus_cli.models.resnet import resnet


def macs_by_torch(model: nn.Module, shape: tuple[int, ...]) -> float:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, *shape))
    torch.backends.mha.set_fastpath_enabled(enabled)
    return counter.get_total_flops() / 2


def test_hand_count_of_a_convolution_and_a_linear_layer():
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(80, 7)
    )
    found = complexity(model, (3, 8, 8))
    assert found.macs == 5 * 3 * 9 * 4 * 4 + 80 * 7
    assert found.params == 5 * 3 * 9 + 2 * 5 + 80 * 7 + 7


def test_resnet56_has_the_published_macs_and_a_block_is_3_75_percent():
    model = resnet(56)
    found = complexity(model, (3, 32, 32))
    assert found.macs == 125_747_840
    model.layer2[3] = nn.Identity()
    assert 100 * (1 - complexity(model, (3, 32, 32)).macs / found.macs) == pytest.approx(3.7525, abs=1e-4)


def test_resnet_agrees_with_torchs_counter():
    assert complexity(resnet(20), (3, 16, 16)).macs == macs_by_torch(resnet(20), (3, 16, 16))


@COUNTED_BY_TORCH
def test_attention_is_counted_and_agrees_with_torchs_counter():
    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10
    )
    found = complexity(model, (3, 32, 32))
    assert found.macs == macs_by_torch(model, (3, 32, 32))
    assert found.uncounted == ()


class Filter(nn.Module):
    """A convolution, then a filter of frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(0.5 * torch.fft.rfft2(self.conv(x)))


def test_the_row_says_what_its_macs_leave_out():
    one, two = (
        complexity_columns(nn.Sequential(Filter()), small_conv_net(), (3, 8, 8)),
        complexity_columns(small_conv_net(), Filter(), (3, 8, 8)),
    )
    assert one["macs_base"] == 64 * 4 * 3 * 9
    assert one["macs_uncounted"] == "aten::_fft_c2r × 1, aten::_fft_r2c × 1"
    assert two["macs_uncounted"] == "nothing"  # of the original


def test_masked_attention_weights_are_counted_by_hand():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = x.flatten(2).transpose(1, 2)  # (1, 16, 8)
            return self.attention(tokens, tokens, tokens, attn_mask=torch.zeros(16, 16))[0]

    projections = 4 * 16 * 8 * 8
    assert complexity(Masked(), (8, 4, 4)).macs == projections + 2 * 16 * 16 * 8


def test_counting_leaves_modes_and_fused_attention_alone():
    model = small_conv_net().train()
    complexity(model, (3, 8, 8))
    assert all(module.training for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_latency_names_its_units_and_ranks_a_network_ten_times_deeper_as_slower():
    layer = nn.Conv2d(3, 3, 3, padding=1)
    found = latency_ms({"one": layer, "many": nn.Sequential(*[layer] * 20)}, (3, 16, 16), 4, "cpu", 0.1)
    assert found["many"].median_ms > 3 * found["one"].median_ms
    assert len(found["one"].blocks_ms) == len(found["many"].blocks_ms) >= 5
    assert found["one"].iqr_ms >= 0


@pytest.mark.slow
def test_latency_of_a_network_against_itself_differs_by_less_than_3_percent():
    model, again = resnet(20), resnet(20)
    again.load_state_dict(model.state_dict())
    found = latency_ms({"a": model, "b": again}, (3, 16, 16), 8, "cpu", 5)
    assert abs(paired_reduction_pct(found["a"].blocks_ms, found["b"].blocks_ms)) < 3


def test_peak_memory_of_a_chain_is_its_two_largest_neighbours():
    # 1 MiB images, then 1 MiB features: while the second of two flattening-free ReLUs runs, input and output live.
    model = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU())
    assert peak_memory_mib(model, (4, 256, 256), 1, "cpu") == pytest.approx(3.0)
    assert peak_memory_mib(nn.Sequential(nn.ReLU(inplace=True)), (4, 256, 256), 1, "cpu") == pytest.approx(1.0)


def test_file_size(tmp_path):
    for name, size_bytes in (("base", 2**20), ("pruned", 2**19)):
        (tmp_path / name).write_bytes(bytes(size_bytes))
    columns = file_size_columns(tmp_path / "base", tmp_path / "pruned")
    assert columns == {"file_size_base_mib": 1.0, "file_size_pruned_mib": 0.5}
