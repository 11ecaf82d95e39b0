"""The commands behind `consensus`: what each takes, and what it does.

PyTorch and Hydra are imported only by the commands that need them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consensus_cli.cli.fast_imports import lasting_imports
from consensus_cli.cli.parser import Answer, Argument, Command, agreed
from consensus_cli.errors import NEEDS_LESS_MEMORY, RunFailedError, UserError, described, memory_told
from consensus_cli.models.paths import expanded

if TYPE_CHECKING:
    from consensus_cli.screen import Screen

_RUN = "outputs/runs/20250131T120000Z-0123abcd"


COMMANDS: dict[str, Command] = {}


def _command(*examples: str, arguments: Sequence[Argument | list[Argument]]) -> Callable[[Answer], Answer]:
    """Makes the decorated function the command of its name."""

    def add(answer: Answer) -> Answer:
        name = answer.__name__.removesuffix("_")
        COMMANDS[name] = Command(name, answer, arguments, examples)
        return answer

    return add


def _argument(*names: str, **settings: Any) -> Argument:
    return names, settings


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty name")
    return expanded(text)


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 65536:
        raise argparse.ArgumentTypeError("a number of images from 1 to 65536, or dynamic")
    return int(text)


@contextmanager
def _files() -> Iterator[None]:
    """Reports a file that cannot be read or written as a mistake: these commands do nothing but read and write."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot use '{error.filename}': {error.strerror or error}", "is it there, and may you read and write it?"
        ) from error


@contextmanager
def _screen(kind: str) -> Iterator[Screen]:
    """Imports what runs need and yields a screen of this kind; exhausted memory is one line."""
    with lasting_imports():
        import consensus_cli.experiment.pipeline  # noqa: F401
        from consensus_cli.screen import open_screen

    with open_screen(kind) as screen, memory_told(NEEDS_LESS_MEMORY):
        yield screen


_SETTINGS = _argument("settings", nargs="*", metavar="key=value", help="as shown by: consensus run --cfg job")
_RUN_DIR = _argument("run", type=_path, metavar="RUN", help="a run directory")
_SCREEN = [
    _argument(f"--{kind}", action="store_const", dest="screen", const=kind, default="auto", help=text)
    for kind, text in (("quiet", "only results and warnings"), ("json", "one JSON object per event and line"))
]
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


@_command(
    "model=resnet56 ratio=0.5",
    "ratio=[0.25,0.5]                                      a row at each of them",
    "-m model=resnet32,resnet56 ratio=0.25,0.5 seed=0,1    a sweep",
    "ratio=0.5 --cfg job                                   what would run",
    arguments=[
        _SETTINGS,
        [
            _argument("-m", "--multirun", action="store_true", help="a sweep over all values that commas separate"),
            _argument("-c", "--cfg", choices=("job", "hydra", "all"), help="show the configuration, run nothing"),
            _argument("--info", nargs="?", const="all", choices=_INFO, help="show how Hydra composes it"),
        ],
        _argument("--resolve", action="store_true", help="with --cfg: references filled in"),
        _argument("-p", "--package", metavar="NODE", help="with --cfg: one node of it, such as model"),
        _argument("-cd", "--config-dir", metavar="DIR", help="a folder of yours with more options of the groups"),
        _argument("-cn", "--config-name", metavar="NAME", help="another primary config file, in that folder"),
        _argument("-cp", "--config-path", metavar="DIR", help="a folder of yours instead of ours"),
        _SCREEN,
    ],
)
def run(asked: Namespace) -> int:
    """Score → prune → fine-tune → evaluate; one row in OUTPUT_DIR/results.csv.

    What there is to set, with the defaults: consensus run --cfg job; what groups offer: consensus list.
    A value with ~, =, commas or brackets is quoted for Hydra as well: 'dataset.root="~/a (1)"'
    """
    if (asked.resolve or asked.package) and not asked.cfg:
        raise UserError("--resolve and --package go with --cfg", "consensus run --cfg job --resolve")
    from consensus_cli.cli.sweep import launch

    return launch(asked)


@_command(_RUN, f"--quiet {_RUN}", arguments=[_RUN_DIR, _SCREEN])
def resume(asked: Namespace) -> int:
    """Continue a run that was stopped or failed, at its last finished step.

    What it reads must be there still.
    """
    with _screen(asked.screen) as screen:
        from consensus_cli.experiment import pipeline

        pipeline.resume(asked.run, screen)
    return 0


@_command(
    "model=resnet56 scoring.bootstrap=100",
    "model=resnet20 metrics=[cka,wasserstein]",
    arguments=[_SETTINGS, _SCREEN],
)
def score(asked: Namespace) -> int:
    """Rank the blocks without pruning: blocks × metrics, on screen and as CSV.

    The settings are those of consensus run; ratio, prune and finetune have no effect.
    """
    from consensus_cli.config.composition import compose_run

    config = agreed(asked.share, lambda: compose_run(asked.settings))
    with _screen(asked.screen) as screen:
        from consensus_cli.experiment import looking

        looking.score(config, screen)
    return 0


@_command(
    "model=resnet56",
    "model=mobilenet_v2 dataset.image_size=64 prune.batch_size=8 prune.runtime=onnxruntime",
    arguments=[_SETTINGS, _SCREEN],
)
def costs(asked: Namespace) -> int:
    """What the network saves without each block: MACs, parameters, latency, energy, memory, on screen and as CSV.

    Measured in turn with the whole network on this machine, which should be quiet; runs with criterion.per=latency or
    energy use the table. The settings are those of consensus run: prune.batch_size, prune.runtime and prune.precision
    say how the network runs, evaluate.latency_min_run_s=2 takes longer and narrows the intervals.
    """
    from consensus_cli.config.composition import compose_run

    config = compose_run(asked.settings)
    with _screen(asked.screen) as screen:
        from consensus_cli.experiment import looking

        looking.costs(config, screen)
    return 0


@_command(
    "models",
    "blocks model=mobilenet_v2 dataset.image_size=64",
    arguments=[
        _argument("what", nargs="?", default="", metavar="WHAT", help="without it: what can be listed"),
        _argument("settings", nargs="*", metavar="key=value", help="with blocks: of the network"),
    ],
)
def list_(asked: Namespace) -> int:
    """What can be chosen: models, datasets, attacks, …; or the residual blocks of a network.

    Of blocks it shows what each costs, and why it stays if it does.
    """
    if asked.what != "blocks":
        from consensus_cli.cli.catalogue import show

        show(asked.what, asked.settings)
        return 0
    with lasting_imports():
        from consensus_cli.config.composition import compose_run
        from consensus_cli.experiment import looking
        from consensus_cli.screen import Screen

    with memory_told(NEEDS_LESS_MEMORY):
        looking.show_blocks(compose_run(asked.settings), Screen())
    return 0


@_command(
    "outputs --out report.html --figures figures",
    "outputs --markdown",
    arguments=[
        _argument(
            "source", nargs="?", type=_path, default=Path("outputs"), metavar="SOURCE", help="outputs unless given"
        ),
        _argument("--out", type=_path, metavar="FILE", help="the page (report.html)"),
        _argument("--figures", type=_path, metavar="DIR", help="every chart as PNG, SVG and PDF, too"),
        [
            _argument("--markdown", action="store_true", help="print tables instead, for a text"),
            _argument("--latex", action="store_true", help="print tables instead, for a paper"),
        ],
    ],
)
def report(asked: Namespace) -> int:
    """One HTML page about a results.csv, the folder that holds it, or one run."""
    if (asked.markdown or asked.latex) and (asked.out or asked.figures):
        raise UserError(
            "--markdown and --latex print tables: they take no --out and no --figures", "consensus report --help"
        )
    from consensus_cli.report import page, text

    with _files():
        if asked.markdown or asked.latex:
            sys.stdout.write(text.markdown(asked.source) if asked.markdown else text.latex(asked.source))
            return 0
        out = asked.out or Path("report.html")
        runs, figures = page.write_report(asked.source, out, asked.figures)
    for note in runs.notes:
        sys.stdout.write(f"note: {note}\n")
    sys.stdout.write(f"{len(runs.rows)} runs: {out}\n")
    if asked.figures:
        sys.stdout.write(f"{len(figures)} figures: {asked.figures}\n")
    return 0


@_command(
    f"{_RUN} outputs/runs/20250131T130000Z-4567cdef",
    "outputs/runs/*",
    arguments=[_argument("runs", nargs="*", type=_path, metavar="RUN", help="two or more run directories")],
)
def compare(asked: Namespace) -> int:
    """Run directories side by side: settings, measures, and the order of removal."""
    from consensus_cli.report.comparison import compare_runs
    from consensus_cli.screen import Screen

    with _files():
        columns, rows = compare_runs(asked.runs)
    Screen().table("", columns, rows)
    return 0


@_command(
    f"{_RUN} --format onnx --batch 1",
    f"{_RUN} --format timm --out vit_of_fewer_layers    a folder that timm loads without this package",
    arguments=[
        _RUN_DIR,
        _argument(
            "--format", default="safetensors", metavar="NAME", help="safetensors, torch-export, onnx, timm or hf"
        ),
        _argument("--out", type=_path, metavar="PATH", help="file or folder (in the run directory unless given)"),
        _argument("--batch", type=_batch, metavar="N", help="onnx, torch-export: N images alone (dynamic: any number)"),
    ],
)
def export(asked: Namespace) -> int:
    """The pruned network of a run for other tools, checked on real test images."""
    from consensus_cli.experiment.export import export as write

    with _files():
        done = write(asked.run, asked.format, asked.out, asked.batch)
    sys.stdout.write(f"{done.path}: {done.difference}\n")
    if done.latency:
        from consensus_cli.report.certificates import faster

        sys.stdout.write(f"in ONNX Runtime, against the original there: {faster(done.latency)}\n")
    if done.loads:
        sys.stdout.write(f"load it with: {done.loads}\n")
    return 0


@_command(
    "outputs",
    "all-machines",
    arguments=[_argument("output_dir", type=_path, metavar="OUTPUT_DIR", help="the folder that holds runs/")],
)
def collect(asked: Namespace) -> int:
    """Rebuild results.csv from the run directories below OUTPUT_DIR/runs, copied there from any machine."""
    from consensus_cli.storage import results

    folder: Path = asked.output_dir
    if not (folder / "runs").is_dir() and not (folder / "results.csv").exists():
        above = folder.resolve().parent if folder.resolve().name == "runs" else None
        raise UserError(
            f"'{folder}' holds neither runs/ nor results.csv",
            f"name the folder that holds runs/: consensus collect {shlex.quote(str(above or 'outputs'))}",
        )
    with _files():
        found = results.collect(folder)
    for problem in found.problems:
        sys.stderr.write(f"warning: {problem}\n")
    sys.stdout.write(f"{found.rows} rows, {found.changed} of them new or changed\n")
    return 0


@_command(
    "output_dir=/scratch/me/outputs",
    "device=cuda:1 --json",
    arguments=[
        _argument("settings", nargs="*", metavar="key=value", help="output_dir, device"),
        _argument("--json", action="store_true", help="one JSON object instead of the table"),
    ],
)
def doctor(asked: Namespace) -> int:
    """Prove in a minute that this machine can do what runs do, on each of its devices.

    A table to paste into an issue: versions, then a little of all kinds of work, with what is wrong and what mends it.
    """
    try:
        with lasting_imports():
            from consensus_cli.experiment import doctor
    except (ImportError, OSError, RuntimeError) as error:
        raise RunFailedError(f"a package does not load: {described(error)}", "install consensus again") from error
    # Raises what is wrong with the settings before anything is shown.
    examined, lines, facts = doctor.examine(asked.settings), [], doctor.facts()
    if not asked.json:
        sys.stdout.write("".join(f"{name:<10} {text}\n" for name, text in facts.items()) + "\n")
    for line in examined:
        lines.append(line)
        if not asked.json:
            sys.stdout.write(f"{line.result}  {line.device:<6}  {line.check:<20}  {line.found}\n")
            sys.stdout.write(f"{'':>14}hint: {line.hint}\n" if line.hint else "")
            sys.stdout.flush()
    failed = sum(line.result == "fail" for line in lines)
    if asked.json:
        sys.stdout.write(json.dumps({"ok": not failed, "facts": facts, "checks": list(map(asdict, lines))}) + "\n")
    else:
        sys.stdout.write(f"\n{failed or 'none'} of {len(lines)} checks failed\n")
    return 1 if failed else 0
