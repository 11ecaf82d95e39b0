"""The study on a small network: a ResNet20 with the weights of its seed, and handwritten digits."""

from __future__ import annotations

import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.small_study import SMALL
from study import oneshot
from study.bench import Bench
from study.evidence import Evidence

from consensus_cli import data
from consensus_cli.models.classifier import Classifier, Normalize
from consensus_cli.models.resnet import resnet
from consensus_cli.screen import Screen

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Bench:
    images = data.load(data.Request("digits", limit_train=600, limit_test=110), tmp_path_factory.mktemp("cache"))
    torch.manual_seed(0)
    model = Classifier(Normalize(images.mean, images.std), resnet(20, in_channels=1))
    # fp32 whatever the machine: the tests compare with exact answers.
    return replace(Bench.of(model, images, SMALL, torch.device("cpu")), precision="fp32")


@pytest.fixture(scope="session")
def measured(bench, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    oneshot.measure(bench, folder, Screen())
    return folder


@pytest.fixture(scope="session")
def evidence(bench, measured) -> Evidence:
    return Evidence.read(measured, SMALL, bench.blocks)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """Twelve training and four test photographs of each class, from the archive that the study unpacks whole."""
    archive = ROOT.parent / "shared" / "data" / "cifar10-jpeg.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    folder, wanted = tmp_path_factory.mktemp("photographs"), {"train": 12, "test": 4}
    taken: Counter[str] = Counter()
    with tarfile.open(archive) as tar:
        for member in tar:
            *_, part, _, _ = ("", "", "", *Path(member.name).parts)
            place = str(Path(member.name).parent)
            if member.isfile() and part in wanted and taken[place] < wanted[part]:
                taken[place] += 1
                tar.extract(member, folder, filter="data")
    root = next(path.parent for path in folder.rglob("train"))
    repacked = folder / "small.tar.xz"
    with tarfile.open(repacked, "w:xz") as tar:
        tar.add(root, "small")
    return repacked
