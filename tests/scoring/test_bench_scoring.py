import importlib.util
import re
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_scoring.py"


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("bench_scoring", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(bench, monkeypatch, capsys, *options: str) -> str:
    small = ["--depth", "20", "--images", "100", "--candidates", "1"]
    monkeypatch.setattr("sys.argv", ["bench_scoring.py", *small, *options])
    bench.main()
    return capsys.readouterr().out


@pytest.mark.slow
def test_benchmark_finds_both_ways_equal(bench, monkeypatch, capsys):
    output = run(bench, monkeypatch, capsys)
    assert "ResNet20, 1 candidates, 8 metrics, 100 images, cpu" in output
    assert len(re.findall(r"(?:engine fp32|engine bf16|plain way): [\d.]+ s = [\d.]+ × one forward pass", output)) == 3
    differences = re.findall(r"relative difference: (.*)", output)
    exact = dict(pair.split() for pair in differences[0].split(", "))
    assert set(exact) == set(bench.PLAIN_METRICS)
    for name in ("cka", "permutation", "linear_alpha1", "wasserstein", "gaussian_alpha2"):
        assert float(exact[name]) < 1e-4


def test_benchmark_can_leave_out_the_plain_way(bench, monkeypatch, capsys):
    output = run(bench, monkeypatch, capsys, "--skip-plain")
    assert "engine bf16" in output
    assert "plain way" not in output
