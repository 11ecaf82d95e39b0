"""Signals, memory and disk: what stops a run, and how it is reported."""

from __future__ import annotations

import copy
import errno
import inspect
import io
import os
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console

from consensus_cli.errors import InterruptedRunError, RunFailedError, is_out_of_memory
from consensus_cli.experiment.batch_sizes import Fitting
from consensus_cli.experiment.limits import explained
from consensus_cli.experiment.signals import Stopper
from consensus_cli.screen import QuietScreen, Screen
from consensus_cli.training import TrainingDivergedError

RUN = Path("outputs/runs/a")


def send_while_saving(stopper: Stopper, done: list[str], *numbers: int) -> None:
    with stopper.listening():
        with stopper.held_off():
            for number in numbers:
                os.kill(os.getpid(), number)
            done.append("saved")
        done.append("went on")


def send(stopper: Stopper, number: int) -> None:
    with stopper.listening():
        os.kill(os.getpid(), number)
        pytest.fail("the signal was lost")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_once_but_lets_a_save_end(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(InterruptedRunError, match=number.name) as stopped:
        send(Stopper(RUN), number)
    assert (stopped.value.signal_number, stopped.value.run_dir) == (number, RUN)
    done: list[str] = []
    with pytest.raises(InterruptedRunError, match=number.name):
        send_while_saving(Stopper(RUN), done, number)
    assert done == ["saved"]
    assert signal.getsignal(number) == before


def test_a_second_interrupt_does_not_wait_for_a_save() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        send_while_saving(Stopper(RUN), done, signal.SIGINT, signal.SIGTERM, signal.SIGINT)
    assert done == []


def test_what_means_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**58)
    assert is_out_of_memory(real.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert is_out_of_memory(MemoryError())


def test_the_size_halves_until_it_fits_and_stays() -> None:
    shown = io.StringIO()
    fitting, tried = Fitting(Screen(Console(file=shown, width=200)), alone=True), []

    def attempt(size: int) -> int:
        tried.append(size)
        if size > 30:
            torch.empty(2**58)
        return size

    assert fitting.attempt("training", 200, attempt) == fitting.attempt("training", 200, attempt) == 25
    assert tried == [200, 100, 50, 25, 25]
    assert shown.getvalue().count("out of memory: training goes on with batches of 25 images") == 1
    assert fitting.sizes == {"training": 25}


@pytest.mark.parametrize(("purpose", "smallest"), [("training", 2), ("scoring", 1)])
def test_what_fits_in_no_size_is_let_through(purpose: str, smallest: int) -> None:
    fitting = Fitting(QuietScreen(Console(quiet=True)), alone=True)
    with pytest.raises(RuntimeError, match="allocate"):
        fitting.attempt(purpose, 8, lambda _: torch.empty(2**58))
    assert fitting.sizes == {purpose: smallest}


@pytest.mark.parametrize(("alone", "words"), [(True, "shapes do not fit"), (False, "DefaultCPUAllocator: no memory")])
def test_another_error_or_one_of_several_processes_is_let_through_at_once(alone: bool, words: str) -> None:
    def attempt(size: int) -> int:
        raise RuntimeError(words)

    fitting = Fitting(QuietScreen(Console(quiet=True)), alone=alone)
    with pytest.raises(RuntimeError, match=words):
        fitting.attempt("training", 8, attempt)
    assert fitting.sizes == {}


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device", f"consensus resume {RUN}"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "Quota exceeded", "make room"),
        (torch.OutOfMemoryError("CUDA"), "no smaller batch", f"consensus resume {RUN}"),
        (TrainingDivergedError("the loss is nan at update 3 of 9"), "at update 3 of 9", "lower finetune.learning_rate"),
    ],
)
def test_limits_are_reported_with_a_hint(error: Exception, message: str, hint: str) -> None:
    with pytest.raises(RunFailedError) as told, explained(RUN):
        raise error
    assert message in told.value.message
    assert hint in told.value.hint


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "denied"), RuntimeError("a bug"), ValueError("a bug")])
def test_bugs_stay_bugs(error: Exception) -> None:
    ours = compile("with explained(RUN):\n    raise error", inspect.getfile(inspect.unwrap(explained)), "exec")
    with pytest.raises(type(error)) as same:
        exec(ours, {"explained": explained, "RUN": RUN, "error": error})
    assert same.value is error


def test_what_the_users_code_raises_late_is_reported_with_its_place() -> None:
    with pytest.raises(RunFailedError) as told, explained(RUN):
        raise KeyError("mask")
    assert told.value.message.startswith("the network's code raised KeyError: 'mask' (test_limits.py, line")
    assert told.value.hint == f"correct it, then continue with: consensus resume {RUN}"


def test_an_interruption_survives_the_way_back_from_another_process(tmp_path: Path) -> None:
    stop = copy.copy(InterruptedRunError(15, tmp_path))  # by __reduce__, as pickle does
    assert (stop.signal_number, stop.run_dir, str(stop)) == (15, tmp_path, "SIGTERM")
