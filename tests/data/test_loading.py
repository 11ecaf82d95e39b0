"""Streaming in real processes: little shared memory, and workers that are ended from outside."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.image_trees import MakeTree
from helpers.loaded_trees import load

from consensus_cli.data import loading
from consensus_cli.data.files import ImageFiles

# Streams without end, as a training does, and says how that ended. PyTorch is loaded once: for each line of its input,
# `SIGNAL everybody|run|worker|fork`, a copy of the process lives and is ended.
STREAMS = """
import multiprocessing, os, subprocess, sys
from pathlib import Path
import torch
from consensus_cli import data
from consensus_cli.errors import RunFailedError
from consensus_cli.errors import InterruptedRunError
from consensus_cli.experiment.signals import Stopper

def stream():
    images = data.load(data.Request("imagefolder", root=sys.argv[1], streaming=True, workers=2), Path(sys.argv[2]))
    batches = (batch for _ in iter(int, 1) for batch in images.train.batches(2))
    if whom == "fork":
        os.register_at_fork(before=lambda: os.kill(os.getpid(), number))
    try:
        with Stopper(Path("run")).listening():
            for count, _ in enumerate(batches):
                if count == 20:
                    signalled[whom](multiprocessing.active_children()[0].pid)
    except InterruptedRunError as interrupted:
        print("interrupted by", interrupted)
    except RunFailedError as failed:
        print(failed.message, "|", failed.hint)

for line in sys.stdin:
    number, whom = int(line.split()[0]), line.split()[1]
    signalled = {
        "everybody": lambda worker: os.killpg(os.getpgid(0), number),
        "run": lambda worker: os.kill(os.getpid(), number),
        # By another process: what its parent ends, ends well.
        "worker": lambda worker: subprocess.run(["kill", f"-{number}", str(worker)]),
    }
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        stream()
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("ended with", os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals and processes as Linux has them")
def test_a_signal_while_images_are_streamed_ends_as_one_line(make_tree: MakeTree, cache_dir: Path) -> None:
    killed = "a worker process that decodes images was ended (SIGKILL) | memory may be short"
    cases = [
        (signal.SIGTERM, "everybody", "interrupted by SIGTERM"),
        (signal.SIGINT, "everybody", "interrupted by SIGINT"),
        (signal.SIGTERM, "run", "interrupted by SIGTERM"),
        (signal.SIGTERM, "worker", "interrupted by SIGTERM"),
        (signal.SIGTERM, "fork", "interrupted by SIGTERM"),
        (signal.SIGKILL, "worker", killed),
    ]
    told = subprocess.run(
        [sys.executable, "-c", STREAMS, str(make_tree({"train": 30, "test": 2})), str(cache_dir)],
        input="".join(f"{int(number)} {whom}\n" for number, whom, _ in cases),
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert told.stderr == ""
    lines = told.stdout.splitlines()
    assert lines[1::2] == ["ended with 0"] * len(cases)
    for line, (_, _, expected) in zip(lines[::2], cases, strict=True):
        assert line.startswith(expected)


def streamed(root: Path, cache_dir: Path, workers: int) -> ImageFiles:
    split = load("imagefolder", root=root, cache_dir=cache_dir, streaming=True, workers=workers, val_fraction=0).train
    assert isinstance(split, ImageFiles)
    return split


def all_images(split: ImageFiles) -> torch.Tensor:
    return torch.cat([images for images, _ in split.batches(5, generator=torch.Generator().manual_seed(0))])


def test_batches_go_through_pipes_where_shared_memory_is_full(
    make_tree: MakeTree, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_tree({"train": 6, "test": 2})

    def full(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    loading._warn_once.cache_clear()
    alone = all_images(streamed(root, cache_dir, workers=0))
    # The workers are forked: they inherit it.
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    for _ in range(2):
        assert torch.equal(all_images(streamed(root, cache_dir, workers=2)), alone)
    assert caplog.text.count("shared memory is full") == 1


def test_images_are_decoded_by_the_run_where_no_worker_can_be_started(
    make_tree: MakeTree, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_tree({"train": 6, "test": 2})

    def full() -> None:
        raise OSError(28, "No space left on device")

    loading._warn_once.cache_clear()
    alone = all_images(streamed(root, cache_dir, workers=0))
    monkeypatch.setattr(loading.multiprocessing, "Queue", full)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(all_images(streamed(root, cache_dir, workers=2)), alone)
    assert "no worker can be started" in caplog.text


@pytest.mark.parametrize(("free_mib", "told"), [(1, True), (440, True), (442, False)])
def test_too_little_shared_memory_is_said_at_the_start(
    make_tree: MakeTree, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, free_mib: int, told: bool
) -> None:
    # 8 workers, 3 batches each, 128 images of 3·224·224 bytes: 441 MiB.
    class Filesystem:
        f_bavail, f_frsize = free_mib, 2**20

    monkeypatch.setattr(loading.os, "statvfs", lambda _: Filesystem)
    root = make_tree({"train": 4, "test": 2})
    data = load("imagefolder", root=root, cache_dir=cache_dir, streaming=True, workers=8, image_size=224)
    assert [f"has {free_mib} MiB free, 8 workers that decode images take 441" in note for note in data.notes] == (
        [True] if told else []
    )
    assert load("imagefolder", root=root, cache_dir=cache_dir, workers=8, image_size=224).notes == ()


def test_the_handler_of_ended_children_stays_the_run_s(make_tree: MakeTree, cache_dir: Path) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    all_images(streamed(make_tree({"train": 6, "test": 2}), cache_dir, workers=2))
    assert signal.getsignal(signal.SIGCHLD) == before
