from __future__ import annotations

import pytest
import torch
from torch import nn

from consensus_cli.evaluation.cost.complexity import latency_ms, peak_memory_mib
from consensus_cli.evaluation.cost.energy import EnergyMeter, compare_energy
from consensus_cli.evaluation.pair import Pair
from consensus_cli.evaluation.robustness.adversarial import attack_accuracy
from consensus_cli.evaluation.robustness.attacks import ATTACKS, Attack
from consensus_cli.evaluation.robustness.distortions import DISTORTIONS, distort
from consensus_cli.models.macs import count_macs
from consensus_cli.models.resnet import resnet

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


def test_gpu_energy_is_read_from_the_driver_and_twice_the_work_takes_twice_as_much():
    model, images = resnet(56).cuda().eval(), torch.rand(256, 3, 32, 32, device="cuda")

    def passes(count: int) -> None:
        with torch.inference_mode():
            for _ in range(count):
                model(images)

    meter = EnergyMeter("BRA", device="cuda")
    assert "NVML" in meter.source
    found = compare_energy({"one": lambda: passes(5), "two": lambda: passes(10)}, meter=meter, window_s=0.2, repeats=3)
    assert found["two"].kwh / found["one"].kwh == pytest.approx(2, rel=0.2)


def test_latency_and_memory_are_measured_on_the_gpu():
    model = resnet(20).cuda()
    assert latency_ms({"a": model}, (3, 32, 32), 8, "cuda", 0.2)["a"].median_ms > 0
    assert peak_memory_mib(model, (3, 32, 32), 64, "cuda") > peak_memory_mib(model, (3, 32, 32), 1, "cuda")


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_attacks_run_on_the_gpu(name, noise_split):
    model = resnet(20).cuda().to(memory_format=torch.channels_last)
    attack = Attack(name, ATTACKS[name].norms[0], steps=3)
    pair = Pair(model, model, noise_split(20, 10), device="cuda")
    found = attack_accuracy(pair, {name: attack}, 20)[name]
    assert found["base_pct"] <= found["clean_base_pct"]


@pytest.mark.parametrize("name", sorted(DISTORTIONS))
def test_corruptions_are_the_same_on_gpu_and_cpu(name, noise_split):
    ((images, _),) = noise_split(8, 2).batches(8)
    on_cpu, on_gpu = (
        distort(images.to(device), name, 3, torch.Generator().manual_seed(0)) for device in ("cpu", "cuda")
    )
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1.5 / 255, rtol=0)  # rounding may differ by one level


@pytest.mark.parametrize(
    "layer",
    [nn.LSTM(4, 6, 2, bidirectional=True), nn.GRU(4, 6), nn.RNN(4, 6), nn.TransformerEncoderLayer(4, 2, 16)],
    ids=lambda layer: type(layer).__name__,
)
def test_macs_are_the_same_on_the_gpu(layer):
    steps = torch.rand(5, 3, 4)
    on_cpu = count_macs(layer, steps)
    assert on_cpu.total > 0
    assert count_macs(layer.cuda(), steps.cuda()) == on_cpu
