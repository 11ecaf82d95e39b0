"""The `consensus` command: words to functions. PyTorch and Hydra are imported only by the commands that need them."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from consensus_cli import __version__
from consensus_cli.errors import RunFailedError, UserError, tell, unknown_name
from consensus_cli.signals import InterruptedRunError
from consensus_cli.startup import lasting_imports

HELP = """\
consensus: layer pruning by the consensus of similarity metrics

usage: consensus COMMAND …

commands
  run [key=value …]       score → prune → fine-tune → evaluate; one row in OUTPUT_DIR/results.csv
      consensus run model=resnet56 ratio=0.5
      consensus run -m model=resnet32,resnet56 ratio=0.25,0.5 seed=0,1     a sweep
      consensus run ratio=0.5 --cfg job                                    what would run
      consensus run ratio=[0.25,0.5]                                       a row at each of them
  resume RUN              continue a run that was stopped or failed at its last finished step
  score [key=value …]     rank the blocks without pruning: blocks × metrics, on screen and as CSV
      consensus score model=resnet56 scoring.bootstrap=100
      run, resume, score: a live view on a terminal, plain lines elsewhere; --quiet: only results and warnings;
      --json: one JSON object per event and line
  list WHAT               models | datasets | metrics | criteria | attacks, or blocks [key=value …]
      consensus list blocks model=resnet56
  report [SOURCE]         one HTML page about results.csv, its folder or a run; --out FILE, --figures DIR,
                          --markdown or --latex for text instead
  compare RUN RUN …       run directories side by side
  export RUN              the pruned network for other tools; --format safetensors|torch-export|onnx, --out FILE
  collect OUTPUT_DIR      rebuild results.csv from the run directories

settings are written key=value; what there is to set, with the defaults: consensus run --cfg job
groups: model dataset baseline metrics criterion prune finetune attacks evaluate experiment

options
  --help     this text
  --version  the version

exit codes: 0 done, 1 a bug or a failed run, 2 a mistake in what was asked for, 130 and 143 interrupted
"""

#: what `consensus list` shows -> the config group that holds it
LISTS = {
    "models": "model",
    "datasets": "dataset",
    "metrics": "metrics",
    "criteria": "criterion",
    "attacks": "attacks",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with the given words (the process's own unless given) and returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # On a machine with a CUDA toolkit and no GPU, PyTorch's benchmark module warns when it is imported.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(HELP)
        return 0
    if words[0] == "--version":
        sys.stdout.write(f"consensus {__version__}\n")
        return 0
    try:
        if words[0] not in COMMANDS:
            raise unknown_name("command", words[0], COMMANDS)
        return _start(COMMANDS[words[0]], words[1:])
    except (UserError, RunFailedError) as error:
        tell(error)
        return 2 if isinstance(error, UserError) else 1
    except InterruptedRunError as stop:
        sys.stderr.write(f"interrupted by {stop}; continue with: consensus resume {stop.run_dir}\n")
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 128 + signal.SIGINT


def _start(command: Callable[[list[str]], int], words: list[str]) -> int:
    """Runs a command, in a job of several processes in the first of them."""
    # Asked here: what the answer is read with imports PyTorch.
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return command(words)
    from consensus_cli import joint

    return joint.lead(lambda: command(words))


class _Parser(argparse.ArgumentParser):
    """Tells a mistake as everything else here does."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}", "consensus --help shows what each command takes")


def _run(words: list[str]) -> int:
    from consensus_cli.screen import take_kind

    words, kind = take_kind(words)
    from consensus_cli.launch import launch

    return launch(words, kind)


def _resume(words: list[str]) -> int:
    from consensus_cli.screen import open_screen, take_kind

    words, kind = take_kind(words)
    parser = _Parser(prog="consensus resume", add_help=False)
    parser.add_argument("run", type=Path)
    asked = parser.parse_args(words)
    with lasting_imports():
        from consensus_cli import pipeline

    with open_screen(kind) as screen:
        pipeline.resume(asked.run, screen)
    return 0


def _score(words: list[str]) -> int:
    from consensus_cli.composition import compose_run
    from consensus_cli.screen import open_screen, take_kind

    words, kind = take_kind(words)
    config = compose_run(words)
    with lasting_imports():
        from consensus_cli import pipeline

    with open_screen(kind) as screen:
        pipeline.score(config, screen)
    return 0


def _list(words: list[str]) -> int:
    if words and words[0] == "blocks":
        from consensus_cli import pipeline
        from consensus_cli.composition import compose_run
        from consensus_cli.screen import Screen

        pipeline.show_blocks(compose_run(words[1:]), Screen())
        return 0
    if len(words) != 1 or words[0] not in LISTS:
        raise unknown_name("list", " ".join(words), [*LISTS, "blocks"])
    from consensus_cli.conf_files import choices

    options = choices(LISTS[words[0]])
    width = max(len(name) for name in options)
    for name, description in options.items():
        sys.stdout.write(f"{name:<{width}}  {description}\n")
    return 0


def _report(words: list[str]) -> int:
    parser = _Parser(prog="consensus report", add_help=False)
    parser.add_argument("source", nargs="?", type=Path, default=Path("outputs"))
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--latex", action="store_true")
    asked = parser.parse_args(words)
    from consensus_cli.report import text, write

    if asked.markdown or asked.latex:
        sys.stdout.write(text.markdown(asked.source) if asked.markdown else text.latex(asked.source))
        return 0
    written = write.write_report(asked.source, asked.out, asked.figures)
    for note in written.notes:
        sys.stdout.write(f"note: {note}\n")
    sys.stdout.write(f"{written.runs} runs: {written.page}\n")
    if asked.figures:
        sys.stdout.write(f"{len(written.figures)} figures: {asked.figures}\n")
    return 0


def _compare(words: list[str]) -> int:
    parser = _Parser(prog="consensus compare", add_help=False)
    parser.add_argument("runs", nargs="*", type=Path)
    from consensus_cli.report.compare import compare_runs
    from consensus_cli.screen import Screen

    compared = compare_runs(parser.parse_args(words).runs)
    Screen().table("", compared.columns, compared.rows)
    return 0


def _export(words: list[str]) -> int:
    parser = _Parser(prog="consensus export", add_help=False)
    parser.add_argument("run", type=Path)
    parser.add_argument("--format", default="safetensors")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(words)
    from consensus_cli.export import export

    done = export(asked.run, asked.format, asked.out)
    sys.stdout.write(
        f"{done.path}: same class on {done.same_predictions} of {done.images} test images, "
        f"largest difference of a logit {done.max_difference:.2g}\n"
    )
    return 0


def _collect(words: list[str]) -> int:
    parser = _Parser(prog="consensus collect", add_help=False)
    parser.add_argument("output_dir", type=Path)
    asked = parser.parse_args(words)
    from consensus_cli.results import collect

    if not asked.output_dir.is_dir():
        raise UserError(f"there is no folder '{asked.output_dir}'", "name the folder that holds runs/")
    found = collect(asked.output_dir)
    for problem in found.problems:
        sys.stderr.write(f"warning: {problem}\n")
    sys.stdout.write(f"{found.rows} rows, {found.changed} of them new or changed\n")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "resume": _resume,
    "score": _score,
    "list": _list,
    "report": _report,
    "compare": _compare,
    "export": _export,
    "collect": _collect,
}
