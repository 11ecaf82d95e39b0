"""The `consensus` command: words to functions. PyTorch and Hydra are imported only by the commands that need them."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from consensus_cli import __version__
from consensus_cli.cli.fast_imports import fit_environment, lasting_imports
from consensus_cli.cli.help_texts import COMMANDS as COMMAND_HELP
from consensus_cli.cli.help_texts import HELP
from consensus_cli.errors import (
    NEEDS_LESS_MEMORY,
    InterruptedRunError,
    RunFailedError,
    UserError,
    memory_told,
    tell,
    unknown_name,
)
from consensus_cli.models.paths import expanded

if TYPE_CHECKING:
    from consensus_cli.data.share import Share


@dataclass(frozen=True)
class Call:
    """A command as it was called.

    Attributes:
        words: what stands behind its name, without the options that every command has.
        debug: whether tracebacks behind errors are shown.
        share: this process among those of a job; None where there is no job.
    """

    words: list[str]
    debug: bool
    share: Share | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with the given words (the process's own unless given) and returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # On a machine with a CUDA toolkit and no GPU, PyTorch's benchmark module warns when it is imported.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    fit_environment()
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = _answer(words, debug)
        sys.stdout.flush()
        return code
    except (UserError, RunFailedError) as error:
        if not (error.shared and _follows()):
            tell(error, debug=debug)
        return 2 if isinstance(error, UserError) else 1
    except InterruptedRunError as stop:
        if not _follows():
            sys.stderr.write(f"interrupted by {stop}; continue with: consensus resume {stop.run_dir}\n")
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read the output has closed it (`consensus list models | head -1`): nobody is left to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _follows() -> bool:
    """Returns whether this is one of a job's processes and not the first, which speaks for all."""
    return os.environ.get("RANK", "0") != "0"


def _answer(words: list[str], debug: bool) -> int:
    """Runs the command, or shows the help or the version that was asked for in its place."""
    command = words[0] if words else "--help"
    if command == "help":
        command, words = (words[1], ["--help"]) if len(words) > 1 else ("--help", [])
    if command in ("-h", "--help"):
        sys.stdout.write(HELP)
        return 0
    if "--version" in words:
        sys.stdout.write(f"consensus {__version__}\n")
        return 0
    if command not in _COMMANDS:
        raise _unknown_command(command)
    if {"-h", "--help"} & set(words):
        sys.stdout.write(COMMAND_HELP[command])
        return 0
    return _start(_COMMANDS[command], Call(words[1:], debug))


def _unknown_command(word: str) -> UserError:
    if word.startswith("-"):
        return UserError(f"unknown option '{word}'", "options stand behind the command: consensus run --quiet …")
    if "=" in word:
        return UserError(f"'{word}' is a setting, not a command", f"consensus run {shlex.quote(word)}")
    return unknown_name("command", word, _COMMANDS)


def _start(command: Callable[[Call], int], call: Call) -> int:
    """Runs a command, in a job of several processes in the first of them."""
    # Asked here: what the answer is read with imports PyTorch.
    world = os.environ.get("WORLD_SIZE", "1")
    if not world.isascii() or not world.isdigit():
        raise UserError(f"WORLD_SIZE={world} in the environment is not a number", "unset it: torchrun sets it itself")
    if int(world) <= 1:
        return command(call)
    return _in_job(command, call)


def _in_job(command: Callable[[Call], int], call: Call) -> int:
    """Runs a command in a job of several processes: runs and scorings in all of them, anything else in the first."""
    from torch import distributed

    from consensus_cli.experiment.distributed import join

    share = join()
    if command in (_run, _resume, _score):
        code = command(replace(call, share=share))
    else:
        code = share.lead(lambda: command(call))
    distributed.destroy_process_group()
    return code


def _screen_kind(kind: str, call: Call) -> str:
    """Returns the kind of screen for this process: of a job's processes the first alone speaks."""
    return kind if call.share is None or call.share.leads else "none"


class _Parser(argparse.ArgumentParser):
    """Tells a mistake as everything else here does."""

    def __init__(self, command: str) -> None:
        super().__init__(prog=f"consensus {command}", add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}", f"{self.prog} --help shows what it takes")


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty name")
    return expanded(text)


@contextmanager
def _files() -> Iterator[None]:
    """Tells of a file that cannot be read or written as a mistake: these commands do nothing but read and write."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot use '{error.filename}': {error.strerror or error}", "is it there, and may you read and write it?"
        ) from error


def _run(call: Call) -> int:
    from consensus_cli.screen import take_kind

    words, kind = take_kind(call.words)
    from consensus_cli.cli.sweep import launch

    return launch(words, kind, debug=call.debug, share=call.share)


def _resume(call: Call) -> int:
    from consensus_cli.screen import open_screen, take_kind

    words, kind = take_kind(call.words)
    parser = _Parser("resume")
    parser.add_argument("run", type=_path)
    asked = parser.parse_args(words)
    with lasting_imports():
        from consensus_cli.experiment import pipeline

    with open_screen(_screen_kind(kind, call)) as screen, memory_told(NEEDS_LESS_MEMORY):
        pipeline.resume(asked.run, screen)
    return 0


def _score(call: Call) -> int:
    from consensus_cli.cli.flags import settings_only
    from consensus_cli.config.composition import compose_run
    from consensus_cli.screen import open_screen, take_kind

    words, kind = take_kind(call.words)
    config = compose_run(settings_only("score", words))
    with lasting_imports():
        from consensus_cli.experiment import looking

    with open_screen(_screen_kind(kind, call)) as screen, memory_told(NEEDS_LESS_MEMORY):
        looking.score(config, screen)
    return 0


def _list(call: Call) -> int:
    what, *words = call.words or [""]
    if what == "blocks":
        from consensus_cli.cli.flags import settings_only
        from consensus_cli.config.composition import compose_run
        from consensus_cli.experiment import looking
        from consensus_cli.screen import Screen

        with memory_told(NEEDS_LESS_MEMORY):
            looking.show_blocks(compose_run(settings_only("list blocks", words)), Screen())
        return 0
    from consensus_cli.cli.catalogue import show

    show(what, words)
    return 0


def _report(call: Call) -> int:
    parser = _Parser("report")
    parser.add_argument("source", nargs="?", type=_path, default=Path("outputs"))
    parser.add_argument("--out", type=_path)
    parser.add_argument("--figures", type=_path)
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--markdown", action="store_true")
    forms.add_argument("--latex", action="store_true")
    asked = parser.parse_args(call.words)
    if (asked.markdown or asked.latex) and (asked.out or asked.figures):
        parser.error("--markdown and --latex print tables: they take no --out and no --figures")
    from consensus_cli.report import page, text

    with _files():
        if asked.markdown or asked.latex:
            sys.stdout.write(text.markdown(asked.source) if asked.markdown else text.latex(asked.source))
            return 0
        written = page.write_report(asked.source, asked.out or Path("report.html"), asked.figures)
    for note in written.notes:
        sys.stdout.write(f"note: {note}\n")
    sys.stdout.write(f"{written.runs} runs: {written.page}\n")
    if asked.figures:
        sys.stdout.write(f"{len(written.figures)} figures: {asked.figures}\n")
    return 0


def _compare(call: Call) -> int:
    parser = _Parser("compare")
    parser.add_argument("runs", nargs="*", type=_path)
    runs = parser.parse_args(call.words).runs
    from consensus_cli.report.comparison import compare_runs
    from consensus_cli.screen import Screen

    with _files():
        columns, rows = compare_runs(runs)
    Screen().table("", columns, rows)
    return 0


def _export(call: Call) -> int:
    parser = _Parser("export")
    parser.add_argument("run", type=_path)
    parser.add_argument("--format", default="safetensors")
    parser.add_argument("--out", type=_path)
    asked = parser.parse_args(call.words)
    from consensus_cli.experiment.export import export

    with _files():
        done = export(asked.run, asked.format, asked.out)
    sys.stdout.write(
        f"{done.path}: same class on {done.same_predictions} of {done.images} test images, "
        f"largest difference of a logit {done.max_difference:.2g}\n"
    )
    return 0


def _collect(call: Call) -> int:
    parser = _Parser("collect")
    parser.add_argument("output_dir", type=_path)
    folder: Path = parser.parse_args(call.words).output_dir
    from consensus_cli.storage.results import collect

    if not folder.is_dir():
        raise UserError(f"there is no folder '{folder}'", "name the folder that holds runs/")
    if not (folder / "runs").is_dir() and not (folder / "results.csv").exists():
        above = folder.resolve().parent if folder.resolve().name == "runs" else None
        raise UserError(
            f"'{folder}' holds neither runs/ nor results.csv",
            f"name the folder that holds runs/: consensus collect {shlex.quote(str(above or 'outputs'))}",
        )
    with _files():
        found = collect(folder)
    for problem in found.problems:
        sys.stderr.write(f"warning: {problem}\n")
    sys.stdout.write(f"{found.rows} rows, {found.changed} of them new or changed\n")
    return 0


_COMMANDS: dict[str, Callable[[Call], int]] = {
    "run": _run,
    "resume": _resume,
    "score": _score,
    "list": _list,
    "report": _report,
    "compare": _compare,
    "export": _export,
    "collect": _collect,
}
