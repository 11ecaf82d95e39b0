"""What a user did wrong, in one line with a hint.

A `UserError` ends the command with exit code 2, a `RunFailedError` with 1, both without a traceback; every other
exception is a bug in this package and keeps its traceback.
"""

from __future__ import annotations

import difflib
import signal
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: names that a hint lists before it only counts them
_LISTED = 40


#: what helps where memory runs out before a run has begun; in it, batches shrink by themselves
NEEDS_LESS_MEMORY = "use smaller images (dataset.image_size), fewer (dataset.limit_train), or a smaller network"


_CORE = (
    "accelerate codecarbon filelock hydra jinja2 joblib markupsafe matplotlib omegaconf PIL psutil rich scikit-learn "
    "torchattacks torchvision yaml"
)
#: packages that the library does without, as they are imported -> the extra that brings them, empty for the core
_PACKAGES = dict.fromkeys(_CORE.split(), "") | {"vl_convert": "[report]"}


class ToldError(Exception):
    """What ends a command with one line that says why, and a hint."""

    #: whether every process of the job has raised it
    shared = False

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UserError(ToldError):
    """A mistake of the user's; the hint mends it."""


class ConfigError(UserError):
    """One or more mistakes in a configuration, found together before anything expensive starts."""

    def __init__(self, problems: Iterable[UserError]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(p.message for p in self.problems), "; ".join(p.hint for p in self.problems))


class ForeignCodeError(UserError):
    """Code that the user gave (a constructor, a forward pass, a hook) raised; `__cause__` is what it raised."""


class RunFailedError(ToldError):
    """A run that could not go on, through no mistake in what was asked for."""


class JobEndedError(RunFailedError):
    """Another process of the job has ended, which says why itself; nothing can be done together any more."""


class InterruptedRunError(BaseException):
    """A signal asked the run to stop; no `Exception`, so that nothing on the way takes it for a failure.

    Attributes:
        signal_number: which signal, such as 15 for SIGTERM.
        run_dir: where the run can be taken up again.
    """

    def __init__(self, signal_number: int, run_dir: Path) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number
        self.run_dir = run_dir

    def __reduce__(self) -> tuple[type[InterruptedRunError], tuple[int, Path]]:
        """Survives the way back from a launcher's process, which rebuilds exceptions from their arguments."""
        return type(self), (self.signal_number, self.run_dir)


@contextmanager
def foreign_code(what: str, hint: str) -> Iterator[None]:
    """Reports what user-given code in the body raises as one line: WHAT raised TYPE: text, with where in their code.

    Args:
        what: whose code it is, such as the class of the network.
        hint: what mends it.

    Raises:
        ForeignCodeError: instead of any exception but ours, exhausted memory and those that our own code raised, which
            are bugs and keep their traceback.
    """
    try:
        yield
    except (ToldError, MemoryError):
        raise
    except Exception as error:
        if _is_ours(error) or is_out_of_memory(error):
            raise
        raise ForeignCodeError(f"{what} raised {described(error)}{_place(error)}", hint) from error


def raised_in_foreign_code(error: Exception) -> str | None:
    """Returns what was raised and where, if that was in code that is neither ours nor installed; None otherwise."""
    place = _place(error)
    return f"{described(error)}{place}" if place else None


@contextmanager
def memory_told(hint: str) -> Iterator[None]:
    """Reports that the body ran out of memory as one line.

    Raises:
        RunFailedError: instead of what allocators raise.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunFailedError("out of memory", hint) from error


@contextmanager
def packages_told() -> Iterator[None]:
    """Reports that the body imports a package of ours which is not installed, with the command that installs it.

    Raises:
        UserError: instead of a ModuleNotFoundError for a package of `_PACKAGES`.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _PACKAGES:
            raise
        raise missing_package(package) from error


def missing_package(name: str) -> UserError:
    """Returns the error for a package of `_PACKAGES` that is not installed."""
    return UserError(f"{name} is not installed", f"pip install 'consensus-cli{_PACKAGES[name]}'")


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """Returns the error for a name that no registry or config group holds, with the nearest valid one."""
    names = sorted(valid)
    suggestion = did_you_mean(nearest(name, names, cutoff=0.5)[:1])
    more = f", … ({len(names)} in all)" if len(names) > _LISTED else ""
    return UserError(f"unknown {kind} '{name}'", f"{suggestion}valid: {', '.join(names[:_LISTED])}{more}")


def nearest(name: str, valid: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Returns up to three of the valid names that a mistyped one may mean, the likeliest first; case does not count."""
    folded: dict[str, list[str]] = {}
    for known in valid:
        folded.setdefault(known.casefold(), []).append(known)
    close = difflib.get_close_matches(str(name).casefold(), folded, n=3, cutoff=cutoff)
    return [known for key in close for known in folded[key]][:3]


def did_you_mean(names: Sequence[str]) -> str:
    """Returns the question with which a hint begins; empty where there are no names."""
    if not names:
        return ""
    *others, last = [f"'{name}'" for name in names]
    return f"did you mean {', '.join(others)} or {last}? " if others else f"did you mean {last}? "


def enumerated(names: Iterable[str], most: int = 5) -> str:
    """Returns the first names of some, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def one_line(text: object) -> str:
    """Returns a text, or what an exception says, in one line."""
    return " ".join(str(text).split())


def described(error: BaseException) -> str:
    """Returns type and text of an exception in one line."""
    return f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")


def first_line(error: BaseException) -> str:
    """Returns the first line of what an exception says, or else its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def tell(error: ToldError, *, debug: bool = False) -> None:
    """Prints each mistake in one line with its hint, on standard error.

    Args:
        error: what ended a command, or a run of a sweep.
        debug: whether the traceback of what is behind them comes first.
    """
    problems = error.problems if isinstance(error, ConfigError) else [error]
    if debug:
        # Several problems may have come to light by one exception.
        for behind in dict.fromkeys(map(_behind, (*problems, error))):
            if behind is not None:
                traceback.print_exception(behind)
    for problem in problems:
        sys.stderr.write(f"error: {one_line(problem.message)}\nhint: {one_line(problem.hint)}\n")


def _behind(error: BaseException) -> BaseException | None:
    """Returns the exception that led to an error, also where `from None` keeps it out of tracebacks."""
    return error.__cause__ or error.__context__


#: networks that this package ships are user-given code like any other
_SHIPPED_NETWORKS = Path(__file__).parent / "models" / "resnet.py"


def _is_ours(error: BaseException) -> bool:
    """Whether this package's own code raised an exception, as opposed to something it called."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return Path(__file__).parent in raised_in.parents and raised_in != _SHIPPED_NETWORKS


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an exception means that the device or the machine has no memory left."""
    # PyTorch's own class by its name, to import no PyTorch here; its allocator on the CPU raises a plain RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    allocator = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in allocator)


def _place(error: BaseException) -> str:
    """Returns the innermost line of code that belongs neither to an installed package nor to us; empty if none does."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        installed = {"site-packages", "dist-packages"} & set(path.parts) or frame.filename.startswith("<")
        libraries = Path(sysconfig.get_paths()["stdlib"]), Path(__file__).parent
        if not installed and not any(library in path.parents for library in libraries):
            return f" ({path.name}, line {frame.lineno}, in {frame.name})"
    return ""
