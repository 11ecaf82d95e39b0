"""The command behind `scripts/results.sh`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from consensus_cli.errors import RunFailedError, UserError, tell
from consensus_cli.screen import Screen

ROOT = Path(__file__).resolve().parents[2]


def main(words: list[str]) -> int:
    """Carries out one word; returns the exit code: 2 for a mistake of the user's, 1 for a run that failed."""
    options = parser().parse_args(words)
    try:
        if options.word == "page":
            show(options.rows, options.document)
        else:
            measure(options)
    except (UserError, RunFailedError) as error:
        tell(error)
        return 2 if isinstance(error, UserError) else 1
    return 0


def parser() -> argparse.ArgumentParser:
    """Returns the words and options of the command."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "consensus"
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--rows", type=Path, default=ROOT / "docs" / "results", help="folder of the CSV files")
    commands = argparse.ArgumentParser(prog="scripts/results.sh", description="The measurements of docs/results.md.")
    known = commands.add_subparsers(dest="word", required=True)
    for word in ("run", "tries", "checks"):
        measuring = known.add_parser(word, parents=[parent])
        measuring.add_argument("--root", type=Path, help="folder with train/ and test/")
        measuring.add_argument(
            "--weights", type=Path, default=ROOT / "../shared/data/resnet56_cifar10jpeg.safetensors", help="of ResNet56"
        )
        measuring.add_argument("--cache", type=Path, default=cache, help="folder of the unpacked images")
        measuring.add_argument("--output-dir", type=Path, default=ROOT / "outputs" / "results", help="of the runs")
        measuring.add_argument("--tiny", action="store_true", help="few images, a fraction of an epoch: does it run?")
        measuring.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="further settings")
        if word != "checks":
            measuring.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of the plan's runs")
    page = known.add_parser("page", parents=[parent])
    page.add_argument("--document", type=Path, default=ROOT / "docs" / "results.md")
    return commands


def measure(options: argparse.Namespace) -> None:
    """Carries out the runs that are not done, or the checks of those that are."""
    from study.bench import unpacked

    from results.measure import RUNS, TRIES, measure_checks, measure_runs, trained_as_much
    from results.plan import TINY, Plan

    plan = TINY if options.tiny else Plan()
    if options.word == "checks":
        measure_checks(plan, options.output_dir, options.rows, Screen())
        return
    root = options.root or unpacked(ROOT / "../shared/data/cifar10-jpeg.tar.xz", options.cache)
    words = [f"dataset.root={root}", f"model.weights={options.weights.resolve()}", *options.set]
    if options.word == "run":
        measure_runs(dict(plan.runs()), words, options.output_dir, options.rows / RUNS, options.only)
    else:
        tries = dict(plan.tries(str(trained_as_much(plan, options.output_dir))))
        measure_runs(tries, words, options.output_dir / "tries", options.rows / TRIES, options.only)


def show(rows: Path, document: Path) -> None:
    """Writes the tables into the document and draws its figures beside the rows."""
    from results.page import Results, draw, with_tables

    results = Results.read(rows)
    document.write_text(with_tables(document.read_text(encoding="utf-8"), results), encoding="utf-8")
    for path in draw(results, rows):
        print(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
