"""The 60,000 JPEG files of CIFAR-10 that lie beside the repository."""

from __future__ import annotations

import tarfile
import time
from pathlib import Path

import pytest
import torch

from consensus_cli.data.datasets import load
from consensus_cli.data.memory import ImageTensors

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.tar.xz"


@pytest.mark.slow
def test_cifar_tree_loads_fast_and_faster_from_the_cache(tmp_path: Path) -> None:
    if not ARCHIVE.is_file():
        pytest.skip("the CIFAR-10 images are not beside the repository")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(tmp_path / "cifar", filter="data")
    loaded, durations_s = [], []
    for _ in range(2):
        start = time.perf_counter()
        loaded.append(load("imagefolder", root=tmp_path / "cifar", cache_dir=tmp_path / "cache"))
        durations_s.append(time.perf_counter() - start)
    first, cached = loaded
    assert durations_s[0] < 60
    assert durations_s[1] < 5
    assert first.train.labels.bincount().tolist() == [4500] * 10
    assert first.val.labels.bincount().tolist() == [500] * 10
    assert first.test.labels.bincount().tolist() == [1000] * 10
    assert isinstance(first.train, ImageTensors)
    assert isinstance(cached.train, ImageTensors)
    assert torch.equal(first.train.images, cached.train.images)
    assert first.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.001)
