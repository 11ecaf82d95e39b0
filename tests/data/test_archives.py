from __future__ import annotations

import hashlib
import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers.loaded_trees import asked, check, load
from scipy.io import savemat
from torchvision import datasets as tv

from consensus_cli.data import Request
from consensus_cli.data.archives import ARCHIVES, Archive
from consensus_cli.errors import UserError


def request_for(root: Path, download: bool = False) -> Request:
    return asked("cifar10", root=root, download=download, val_fraction=0.25)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_pickle(path: Path, content: dict[str, object]) -> None:
    path.write_bytes(pickle.dumps(content))


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Serves the folder `server` to this machine."""
    (tmp_path / "server").mkdir()
    with HTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=tmp_path / "server")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def tiny_cifar(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Archive, Path]:
    """CIFAR-10 in its own format with 20 + 10 images, to be fetched from `address`."""
    server = tmp_path / "server"
    batches = server / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("data_batch_1", 20), ("test_batch", 10)):
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        write_pickle(batches / name, {"data": pixels, "labels": [n % 2 for n in range(count)]})
    write_pickle(batches / "batches.meta", {"label_names": ["cat", "dog"]})
    packed = server / "cifar-10-python.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(batches, batches.name)

    class TinyCifar(tv.CIFAR10):
        url = f"{address}/{packed.name}"
        tgz_md5 = md5(packed)
        train_list: ClassVar = [["data_batch_1", md5(batches / "data_batch_1")]]
        test_list: ClassVar = [["test_batch", md5(batches / "test_batch")]]
        meta: ClassVar = {"filename": "batches.meta", "key": "label_names", "md5": md5(batches / "batches.meta")}

    monkeypatch.setattr(tv, "CIFAR10", TinyCifar)
    return ARCHIVES["cifar10"], packed


def test_download_unpack_and_read(tiny_cifar: tuple[Archive, Path], tmp_path: Path) -> None:
    archive, packed = tiny_cifar
    root = tmp_path / "new" / "folder"
    parts = archive.read(request_for(root, download=True), tmp_path)
    assert (len(parts.train), len(parts.val), len(parts.test)) == (16, 4, 10)
    assert sorted(parts.val.labels.tolist()) == [0, 0, 1, 1]
    assert parts.classes == ("cat", "dog")
    first_image, first_label = next(parts.test.batches(1))
    with (packed.parent / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        pixels = pickle.load(file)["data"]  # noqa: S301 (written by this test)
    assert torch.equal(first_image, torch.from_numpy(pixels[:1].reshape(1, 3, 32, 32)).float() / 255)
    assert first_label.tolist() == [0]
    assert not list(root.glob(".fetch-*"))


def test_second_read_needs_no_download(tiny_cifar: tuple[Archive, Path], tmp_path: Path) -> None:
    archive, packed = tiny_cifar
    root = tmp_path / "root"
    archive.read(request_for(root, download=True), tmp_path)
    packed.unlink()
    (root / packed.name).unlink()
    assert archive.check(request_for(root), tmp_path) == []
    assert len(archive.read(request_for(root), tmp_path).test) == 10


def test_archive_that_lies_there_is_unpacked_without_download(tiny_cifar: tuple[Archive, Path], tmp_path: Path) -> None:
    archive, packed = tiny_cifar
    root = tmp_path / "root"
    root.mkdir()
    packed.replace(root / packed.name)
    assert archive.check(request_for(root), tmp_path) == []
    assert len(archive.read(request_for(root), tmp_path).test) == 10


def test_truncated_archive_is_reported(tiny_cifar: tuple[Archive, Path], tmp_path: Path) -> None:
    archive, packed = tiny_cifar
    root = tmp_path / "root"
    root.mkdir()
    (root / packed.name).write_bytes(packed.read_bytes()[:100])
    with pytest.raises(UserError, match="incomplete or damaged") as raised:
        archive.read(request_for(root), tmp_path)
    assert "dataset.download=true" in raised.value.hint


def test_damaged_files_are_reported_and_a_download_mends_them(tiny_cifar: tuple[Archive, Path], tmp_path: Path) -> None:
    archive, packed = tiny_cifar
    root = tmp_path / "root"
    archive.read(request_for(root, download=True), tmp_path)
    (root / packed.name).unlink()
    damaged = root / "cifar-10-batches-py" / "test_batch"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match="incomplete or damaged"):
        archive.read(request_for(root), tmp_path)
    assert len(archive.read(request_for(root, download=True), tmp_path).test) == 10


def test_failed_download_is_reported_and_leaves_nothing(tiny_cifar: tuple[Archive, Path], tmp_path: Path) -> None:
    archive, packed = tiny_cifar
    packed.unlink()
    root = tmp_path / "root"
    with pytest.raises(UserError, match="could not be fetched into") as raised:
        archive.read(request_for(root, download=True), tmp_path)
    assert "check the connection" in raised.value.hint
    assert [path.name for path in root.rglob("*")] in ([], [".fetch.lock"])


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "fashion_mnist"])
def test_missing_files_are_found_before_anything_is_read(name: str, tmp_path: Path) -> None:
    problems = check(name, root=tmp_path / "nowhere", cache_dir=tmp_path)
    assert [problem.message for problem in problems] == [f"dataset '{name}' is not in {tmp_path / 'nowhere'}"]
    assert "dataset.download=true" in problems[0].hint
    assert check(name, root=tmp_path / "nowhere", cache_dir=tmp_path, download=True) == []


def test_without_a_root_the_cache_folder_is_searched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not in") as raised:
        load("cifar10", cache_dir=tmp_path)
    assert str(tmp_path / "cifar10") in raised.value.message


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def fashion_root(tmp_path: Path) -> Path:
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 20)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28))
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path / "data"


def test_grey_images_keep_one_channel(fashion_root: Path, tmp_path: Path) -> None:
    data = load("fashion_mnist", root=fashion_root, cache_dir=tmp_path, val_fraction=0.25)
    assert (len(data.train), len(data.val), len(data.test)) == (30, 10, 20)
    assert data.train.image_shape == (1, 28, 28)
    assert data.test.labels.tolist() == [n % 10 for n in range(20)]
    assert len(data.mean) == len(data.std) == 1
    assert data.classes[9] == "Ankle boot"


def test_images_are_resized_when_asked(fashion_root: Path, tmp_path: Path) -> None:
    data = load("fashion_mnist", root=fashion_root, cache_dir=tmp_path, image_size=16)
    assert data.train.image_shape == data.test.image_shape == (1, 16, 16)


def test_truncated_raw_file_is_reported(fashion_root: Path, tmp_path: Path) -> None:
    path = fashion_root / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="incomplete or damaged"):
        load("fashion_mnist", root=fashion_root, cache_dir=tmp_path)


def test_matlab_files_are_read_with_ten_as_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    stored_labels = np.arange(20)[:, None] % 10 + 1
    for part in ("train", "test"):
        savemat(tmp_path / f"{part}_32x32.mat", {"X": pixels, "y": stored_labels})

    class TinySvhn(tv.SVHN):
        split_list: ClassVar = {
            part: ["", f"{part}_32x32.mat", md5(tmp_path / f"{part}_32x32.mat")] for part in ("train", "test")
        }

    monkeypatch.setattr(tv, "SVHN", TinySvhn)
    parts = ARCHIVES["svhn"].read(request_for(tmp_path), tmp_path)
    assert parts.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    assert parts.classes == tuple("0123456789")
    images = next(parts.test.batches(20))[0]
    assert torch.equal(images, torch.from_numpy(pixels).permute(3, 2, 0, 1).float() / 255)
