"""2,048 features in the default memory budget, in a process of its own so that its peak memory is its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

#: What the eight metrics and the network need beside the budget: the weights twice, a batch, PyTorch's own buffers.
OVERHEAD_GIB = 1.0

SCORED = """
import json, resource, sys
import torch, torchvision
from consensus_cli import rank_blocks

image_count, names = int(sys.argv[1]), sys.argv[2:]
torch.manual_seed(0)
network = torchvision.models.resnet50(num_classes=10).eval()
images = torch.rand(image_count, 3, 32, 32)
before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

loader = [(images[rows], rows % 10) for rows in torch.arange(image_count).split(128)]
ranking = rank_blocks(network, loader, metrics=names)
grown_gib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 2**20
distances = {name: values.tolist() for name, values in ranking.distances.items()}
print(json.dumps({"distances": distances, "grown_gib": grown_gib, "passes": ranking.passes}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts KiB on Linux alone")
def test_resnet50_in_the_default_memory_budget():
    names = ["cka", "linear_alpha0", "linear_alpha1", "permutation", "wasserstein"]
    names += [f"gaussian_alpha{alpha}" for alpha in (0, 1, 2)]
    done = subprocess.run(
        [sys.executable, "-c", SCORED, "640", *names],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    result = json.loads(done.stdout)
    assert result["passes"] == 1
    assert set(result["distances"]) == set(names)
    for values in result["distances"].values():
        assert len(values) == 12
        assert all(0 <= value < float("inf") for value in values)
    assert result["grown_gib"] < 2.0 + OVERHEAD_GIB
