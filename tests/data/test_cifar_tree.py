"""The 60,000 JPEG files of CIFAR-10 that lie beside the repository."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from helpers.loaded_trees import load

from consensus_cli.data.memory import ImageTensors

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.tar.xz"

TRAINED = """
import resource, sys
from pathlib import Path
import torch
from consensus_cli import data, training
from consensus_cli.models.resnet import resnet

images = data.load(data.Request("imagefolder", root=sys.argv[1], val_fraction=0.01), Path(sys.argv[2]))
recipe = training.Recipe(epochs=0.02, learning_rate=0.1, schedule="constant", milestones=(), momentum=0.9,
                         weight_decay=5e-4, batch_size=128, accumulate_batches=1, label_smoothing=0.0)
training.train(resnet(56), images.train, recipe, device=torch.device("cpu"), augmentation=images.augmentation, seed=0,
               precision="fp32")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not ARCHIVE.is_file():
        pytest.skip("the CIFAR-10 images are not beside the repository")
    folder = tmp_path_factory.mktemp("cifar")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.mark.slow
def test_cifar_tree_is_the_same_from_the_cache(tree: Path, tmp_path: Path) -> None:
    first, cached = (load("imagefolder", root=tree, cache_dir=tmp_path) for _ in range(2))
    assert first.train.labels.bincount().tolist() == [4500] * 10
    assert first.val.labels.bincount().tolist() == [500] * 10
    assert first.test.labels.bincount().tolist() == [1000] * 10
    assert isinstance(first.train, ImageTensors)
    assert isinstance(cached.train, ImageTensors)
    assert torch.equal(first.train.images, cached.train.images)
    assert first.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.001)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts KiB on Linux alone")
def test_training_on_all_of_it_stays_under_3_gib(tree: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", TRAINED, str(tree), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert float(done.stdout) < 3
