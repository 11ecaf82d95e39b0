"""Proof that a machine can do what runs do: facts about it, and a little of all kinds of work on each of its devices.

Each check stands alone: what goes wrong in one is its line, and the others go on.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from consensus_cli import __version__, training
from consensus_cli.config.composition import compose_run
from consensus_cli.config.schema import RunConfig
from consensus_cli.errors import (
    ToldError,
    UserError,
    described,
    is_out_of_memory,
    one_line,
)
from consensus_cli.evaluation.cost.energy import EnergyMeter
from consensus_cli.experiment import checks
from consensus_cli.experiment.device_trial import REPORT, TINY, Check, Skipped, Work, torchrun
from consensus_cli.experiment.distributed import world
from consensus_cli.experiment.row import git_commit
from consensus_cli.experiment.threads import ThreadWatch, restored
from consensus_cli.storage.atomic import try_writing
from consensus_cli.storage.results import check_writable
from consensus_cli.storage.rundir import RESULTS_NAME

#: what the user may set
_SETTINGS = ("output_dir", "device")

_PACKAGES = (
    "torchvision",
    "accelerate",
    "numpy",
    "scipy",
    "pandas",
    "hydra-core",
    "codecarbon",
    "torchattacks",
)
_RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


@dataclass(frozen=True)
class Line:
    """What a check came to.

    Attributes:
        check: what was tried.
        device: where; empty for the machine.
        result: `skip` where there is nothing to try.
        found: what was measured, or why it failed or was skipped, in one line.
        hint: what mends it; empty where nothing has to be.
    """

    check: str
    device: str
    result: Literal["pass", "fail", "skip"]
    found: str
    hint: str = ""


def facts() -> dict[str, str]:
    """Returns what a machine is: versions, cores, devices, extras."""
    asked: dict[str, Callable[[], str]] = {
        "consensus": lambda: f"{__version__}, commit {git_commit()}",
        "python": lambda: f"{platform.python_version()} on {platform.platform()}",
        "packages": _packages,
        "cores": _cores,
        "memory": lambda: f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "GPUs": lambda: "; ".join(map(_gpu, range(torch.cuda.device_count()))) or _why_no_gpu(),
        "extras": _extras,
    }
    return {name: _line(name, "", ask).found for name, ask in asked.items()}


def examine(settings: Sequence[str]) -> Iterator[Line]:
    """Returns an iterator over the lines: of the machine, then of every device, each made when it is asked for.

    Args:
        settings: `output_dir=PATH`, of which it is tried whether runs can write there, and `device=NAME` for that one
            and the CPU alone.

    Raises:
        UserError: another setting, no such device, or a job of several processes.
    """
    for word in settings:
        if word.partition("=")[0] not in _SETTINGS:
            raise UserError(
                f"consensus doctor takes {' and '.join(_SETTINGS)}, not '{word}'", "consensus doctor device=cpu"
            )
    if world() > 1:
        raise UserError("consensus doctor starts several processes itself", "run it without torchrun")
    config = compose_run([*TINY, *settings])
    checks.raise_together(checks.value_problems(config))
    return _examined(config, _devices(config.device))


def _examined(config: RunConfig, devices: Sequence[torch.device]) -> Iterator[Line]:
    with restored():
        yield from (_line(name, "", check) for name, check in _machine(config).items())
        on_cpu = Work(config, torch.device("cpu"))
        for device in devices:
            work = on_cpu if device.type == "cpu" else Work(config, device, on_cpu)
            yield from (_line(name, str(device), check) for name, check in work.checks())
        if torch.backends.mps.is_available():
            yield _line("all of it", "mps", _mps)
        yield _line("several processes", "", lambda: _several(devices))


def _line(check: str, device: str, run: Check) -> Line:
    """Returns the line of a check, whatever it raises."""
    try:
        return Line(check, device, "pass", run())
    except Skipped as skip:
        return Line(check, device, "skip", str(skip), skip.hint)
    except ToldError as error:
        return Line(check, device, "fail", one_line(error.message), one_line(error.hint))
    except OSError as error:
        return Line(check, device, "fail", described(error), "is the disk full, or the folder not yours?")
    except Exception as error:
        hint = "free its memory, which other programs hold" if is_out_of_memory(error) else REPORT
        return Line(check, device, "fail", described(error), hint)


def _threads() -> str:
    """Takes as many threads as other programs leave cores, as runs do."""
    notes: list[str] = []
    ThreadWatch(None, notes.append).look()
    return notes[0] if notes else f"{torch.get_num_threads()}, no other program is in the way"


def _machine(config: RunConfig) -> dict[str, Check]:
    another = "choose another folder with output_dir=PATH"
    return {
        "threads": _threads,
        "output folder": lambda: _results_in(Path(config.output_dir)),
        "cache folder": lambda: _writable(checks.cache_dir(config), another),
        "temporary folder": lambda: _writable(Path(tempfile.gettempdir()), "set TMPDIR to a folder of yours"),
        "energy counter": lambda: _counter(config),
    }


def _results_in(folder: Path) -> str:
    for error in check_writable(folder / RESULTS_NAME):
        raise error
    return f"can write to '{folder}'"


def _writable(folder: Path, hint: str) -> str:
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"'{folder}' is a file, not a folder", "move the file away, or " + hint)
        try_writing(folder / "something")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot write to '{folder}': {reason}", hint) from error
    return f"can write to '{folder}'"


def _counter(config: RunConfig) -> str:
    meter = EnergyMeter(config.evaluate.country)
    if not meter.estimated:
        return meter.source
    why = "there is none"
    if platform.system() == "Linux":
        why = "codecarbon does not read what is there" if _RAPL.exists() else f"{_RAPL} is not there"
        if _RAPL.exists() and not os.access(_RAPL, os.R_OK):
            why = f"{_RAPL} may not be read"
    raise Skipped(
        f"{why}: codecarbon estimates energy from CPU time, which adds little beyond the run time",
        "virtual machines and containers hide counters; on your own machine: sudo chmod -R a+r /sys/class/powercap",
    )


def _devices(name: str) -> list[torch.device]:
    """Returns the CPU, and all GPUs or the one that was asked for."""
    gpus = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    if name != "auto":
        gpus = [device for device in [checks.pick_device(name)] if device.type != "cpu"]
    return [torch.device("cpu"), *gpus]


def _mps() -> str:
    raise Skipped("metrics compute in float64, which MPS does not have", "runs use the CPU of this machine")


def _several(devices: Sequence[torch.device]) -> str:
    gpus = len(devices) - 1
    if gpus < 2:
        raise Skipped(f"tried with two GPUs or more; here: {gpus}")
    return torchrun(gpus, "cuda")


def _packages() -> str:
    versions = {name: _version(name) or "not installed" for name in _PACKAGES}
    # PyTorch's own word says what it was built for.
    return f"torch {torch.__version__}, " + ", ".join(f"{name} {version}" for name, version in versions.items())


def _cores() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    precision = "bf16" if training.resolve_precision("auto", torch.device("cpu")) == "bf16" else "no bf16"
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    return f"{usable} of {os.cpu_count()}, {precision} in hardware, OMP_NUM_THREADS {threads}"


def _gpu(number: int) -> str:
    device, found = torch.device("cuda", number), torch.cuda.get_device_properties(number)
    precision = "bf16" if training.resolve_precision("auto", device) == "bf16" else "no bf16"
    capability = f"compute capability {found.major}.{found.minor}"
    return f"{device} {found.name}, {found.total_memory / 2**30:.0f} GiB, {capability}, {precision} in hardware"


def _why_no_gpu() -> str:
    cuda = torch.version.cuda or torch.version.hip
    return f"none: PyTorch is built for CUDA {cuda} and sees none" if cuda else "none: PyTorch is built without CUDA"


def _extras() -> str:
    """Returns which extras are installed, and which are not."""
    try:
        needed = importlib.metadata.requires("consensus-cli") or []
    except importlib.metadata.PackageNotFoundError:
        return "not known: consensus is not installed, but run from its folder"
    there: dict[str, bool] = {}
    for text in needed:
        if found := re.fullmatch(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"].*", text):
            name, extra = found.groups()
            there[extra] = there.get(extra, True) and bool(_version(name))
    there.pop("test", None)
    names = {state: " ".join(extra for extra, found in there.items() if found == state) for state in (True, False)}
    return f"{names[True] or 'none'}; not installed: {names[False] or 'none'}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
