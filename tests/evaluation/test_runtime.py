"""Every runtime answers as PyTorch does, and one that is missing is one line."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers.evaluation_networks import small_conv_net
from torch import Tensor, nn

from consensus_cli.errors import ForeignCodeError, UserError
from consensus_cli.evaluation.cost import runtime as runtimes
from consensus_cli.evaluation.cost.runtime import RUNTIMES, check_runtime, forward_of, onnx_forward, write_onnx
from consensus_cli.models.modes import evaluating

CPU = torch.device("cpu")


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return small_conv_net()


@pytest.mark.parametrize(("runtime", "precision"), [*((name, "fp32") for name in RUNTIMES), ("torch", "bf16")])
def test_it_answers_as_pytorch_does(network: nn.Module, runtime: str, precision: str) -> None:
    images = torch.rand(3, 3, 8, 8)
    with evaluating(network):
        found = forward_of(network, images, runtime, precision)(images).float()
        expected = network(images)
    torch.testing.assert_close(found, expected, **({"rtol": 0.03, "atol": 0.03} if precision == "bf16" else {}))


@pytest.mark.slow
def test_networks_that_share_their_code_are_all_compiled() -> None:
    counted, images = torch._dynamo.utils.counters["stats"], torch.rand(2, 3, 8, 8)
    before = counted["unique_graphs"]
    for width in range(1, 11):
        with evaluating(wider := nn.Sequential(nn.Conv2d(3, width, 1), nn.Flatten())):
            torch.testing.assert_close(forward_of(wider, images, "torch-compile")(images), wider(images))
    assert counted["unique_graphs"] == before + 10


def test_onnx_takes_batches_of_one_size_or_any(network: nn.Module, tmp_path) -> None:
    images, more = torch.rand(2, 3, 8, 8), torch.rand(5, 3, 8, 8)
    with evaluating(network):
        expected = network(more)
        for any_batch in (True, False):
            write_onnx(network, images, tmp_path / "net.onnx", any_batch=any_batch)
            forward = onnx_forward(tmp_path / "net.onnx")
            if any_batch:
                torch.testing.assert_close(forward(more), expected)
            else:
                with pytest.raises(Exception, match="invalid dimensions"):
                    forward(more)


def test_onnx_has_as_many_threads_as_pytorch(network: nn.Module, tmp_path, monkeypatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    with evaluating(network):
        write_onnx(network, torch.rand(2, 3, 8, 8), tmp_path / "net.onnx", any_batch=True)
    opened, session, before = [], onnxruntime.InferenceSession, torch.get_num_threads()

    def noted(path: str, options, **settings):
        opened.append(options.intra_op_num_threads)
        return session(path, options, **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    forward = onnx_forward(tmp_path / "net.onnx")
    try:
        for threads in (before, before + 1, before + 1):
            torch.set_num_threads(threads)
            forward(torch.rand(2, 3, 8, 8))
    finally:
        torch.set_num_threads(before)
    assert opened == [before, before + 1]


class Bessel(nn.Module):
    """What ONNX has no operator for, and nobody decomposes."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.modified_bessel_k1(x).flatten(1)


def test_a_network_that_a_runtime_cannot_take_is_one_line() -> None:
    with pytest.raises(ForeignCodeError, match="the runtime onnxruntime raised ") as raised:
        forward_of(Bessel(), torch.rand(1, 3, 2, 2), "onnxruntime")
    assert "'torch'" in raised.value.hint


@pytest.mark.parametrize(
    ("runtime", "device", "precision", "message", "hint"),
    [
        ("onnx", "cpu", "fp32", "unknown runtime 'onnx'", "did you mean 'onnxruntime'"),
        ("torch", "cpu", "fp16", "unknown precision 'fp16'", "bf16"),
        ("onnxruntime", "cuda", "fp32", "on the CPU, not on cuda", "device=cpu"),
        ("onnxruntime", "cpu", "bf16", "computes in fp32 here, not in bf16", "use fp32"),
    ],
)
def test_what_cannot_run(runtime: str, device: str, precision: str, message: str, hint: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        check_runtime(runtime, torch.device(device), precision)
    assert hint in raised.value.hint


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="not installed: onnxruntime") as raised:
        check_runtime("onnxruntime", CPU)
    assert "consensus-cli[onnx]" in raised.value.hint
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and there is no no-such-compiler"):
        check_runtime("torch-compile", CPU)
    monkeypatch.setattr(runtimes, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="needs triton, which is not installed"):
        check_runtime("torch-compile", torch.device("cuda"))
