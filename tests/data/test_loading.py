"""Streaming in real processes: how batches travel, and workers that are ended from outside."""

from __future__ import annotations

import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from helpers.image_trees import MakeTree
from helpers.loaded_trees import load

from consensus_cli.data import loading
from consensus_cli.data.files import ImageFiles
from consensus_cli.errors import RunFailedError

FORK = pytest.mark.skipif(sys.platform != "linux", reason="signals and processes as Linux has them")

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
            for count, _ in enumerate(batches, 1):
                # A worker that has decoded its share is not missed; in a later pass one is.
                for worker in multiprocessing.active_children()[:1] if count % 20 == 0 else ():
                    signalled[whom](worker.pid)
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


@FORK
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
        timeout=600,
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


def test_processes_that_are_not_forked_give_the_same_batches(
    make_tree: MakeTree, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree({"train": 6, "test": 2})
    alone = all_images(streamed(root, cache_dir, workers=0))
    spawn = multiprocessing.get_context("spawn")
    monkeypatch.setattr(multiprocessing, "get_context", lambda: spawn)
    assert torch.equal(all_images(streamed(root, cache_dir, workers=1)), alone)


@FORK
def test_workers_that_cannot_be_started_are_reported(
    make_tree: MakeTree, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = streamed(make_tree({"train": 6, "test": 2}), cache_dir, workers=2)
    fork = os.fork

    def full() -> int:
        if multiprocessing.active_children():
            raise OSError(28, "No space left on device")
        return fork()

    monkeypatch.setattr(os, "fork", full)
    with pytest.raises(RunFailedError, match=r"no worker process can be started .*No space left") as raised:
        all_images(split)
    assert "dataset.workers" in raised.value.hint
    assert not multiprocessing.active_children()


def decode_three(decoded: Callable[[int], torch.Tensor]) -> None:
    drawn = loading.batches(
        decoded,
        lambda image: image,
        [(position, 0) for position in range(3)],
        image_shape=(3, 2, 2),
        batch_size=1,
        workers=2,
        drop_last=False,
    )
    assert len(list(drawn)) == 3


def grey(position: int) -> torch.Tensor:
    return torch.full((3, 2, 2), position, dtype=torch.uint8)


@FORK
@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_worker_that_is_killed_while_it_decodes_is_reported(killed: int) -> None:
    def decoded(position: int) -> torch.Tensor:
        if position == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return grey(position)

    with pytest.raises(RunFailedError, match=r"was ended \(SIGKILL\)"):
        decode_three(decoded)
    assert not multiprocessing.active_children()


@FORK
def test_a_worker_that_is_killed_while_it_answers_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    run, send = os.getpid(), Connection.send

    def half(self: Connection, answer: object) -> None:
        if os.getpid() == run:
            send(self, answer)
        else:
            # An answer begins with its length.
            os.write(self.fileno(), struct.pack("!i", 1000) + b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Connection, "send", half)
    with pytest.raises(RunFailedError, match=r"was ended \(SIGKILL\)"):
        decode_three(grey)
    assert not multiprocessing.active_children()


@FORK
def test_an_error_in_a_worker_is_raised_in_the_run() -> None:
    def decoded(position: int) -> torch.Tensor:
        raise ZeroDivisionError(f"image {position}")

    with pytest.raises(ZeroDivisionError, match="image 0") as raised:
        decode_three(decoded)
    assert "in decoded" in raised.value.__notes__[0]
    assert not multiprocessing.active_children()


@FORK
def test_no_worker_and_no_thread_is_left_when_streaming_ends(make_tree: MakeTree, cache_dir: Path) -> None:
    split, threads = streamed(make_tree({"train": 6, "test": 2}), cache_dir, workers=2), threading.active_count()
    all_images(split)
    assert not multiprocessing.active_children()
    one, other = split.batches(1), split.batches(1)
    next(one), next(other)
    # A thread of the run may hold a lock when the next epoch forks, and would have to end before the run can.
    assert threading.active_count() == threads
    del other
    assert len(list(one)) == len(split) - 1
    assert not multiprocessing.active_children()


@FORK
def test_workers_end_with_a_run_that_is_killed(make_tree: MakeTree, cache_dir: Path) -> None:
    code = """
import multiprocessing, os, sys
from pathlib import Path
from consensus_cli import data
images = data.load(data.Request("imagefolder", root=sys.argv[1], streaming=True, workers=2), Path(sys.argv[2]))
next(iter(images.train.batches(2)))
stream = images.train.batches(2)
next(stream)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), 9)
"""
    words = [sys.executable, "-c", code, str(make_tree({"train": 30, "test": 2})), str(cache_dir)]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    workers = [Path("/proc", pid) for pid in told.stdout.split()]
    assert len(workers) >= 2
    for _ in range(600):
        if not any(alive(worker) for worker in workers):
            return
        time.sleep(0.1)
    pytest.fail("workers live on")


def alive(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_handler_of_ended_children_stays_the_run_s(make_tree: MakeTree, cache_dir: Path) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    all_images(streamed(make_tree({"train": 6, "test": 2}), cache_dir, workers=2))
    assert signal.getsignal(signal.SIGCHLD) == before
