"""The command behind `scripts/results.sh`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from consensus_cli.errors import RunFailedError, UserError, tell
from consensus_cli.screen import Screen

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "docs" / "results"


def main(words: list[str]) -> int:
    """Carries out one word; returns the exit code: 2 for a mistake of the user's, 1 for a run that failed."""
    options = parser().parse_args(words)
    try:
        if options.word == "page":
            show(options.rows or PUBLISHED, options.document)
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
    parent.add_argument("--rows", type=Path, help="folder of the CSV files, docs/results; of a tiny plan --output-dir")
    commands = argparse.ArgumentParser(prog="scripts/results.sh", description="The measurements of docs/results.md.")
    known = commands.add_subparsers(dest="word", required=True)
    for word in ("run", "tries", "checks"):
        measuring = known.add_parser(word, parents=[parent])
        measuring.add_argument("--root", type=Path, help="folder with train/ and test/")
        measuring.add_argument(
            "--weights", type=Path, default=ROOT / "../shared/data/resnet56_cifar10jpeg.safetensors", help="of ResNet56"
        )
        measuring.add_argument("--cache", type=Path, default=cache, help="folder of the unpacked images")
        measuring.add_argument("--output-dir", type=Path, help="of the runs, outputs/results[-tiny]")
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
    options.output_dir = options.output_dir or ROOT / "outputs" / ("results-tiny" if options.tiny else "results")
    # The rows of a quick look are not the page's.
    options.rows = options.rows or (options.output_dir if options.tiny else PUBLISHED)
    if options.word == "checks":
        measure_checks(plan, options.output_dir, options.rows, Screen())
        return
    root = options.root or unpacked(ROOT / "../shared/data/cifar10-jpeg.tar.xz", options.cache)
    words = [f"dataset.root={root}", f"model.weights={options.weights.resolve()}", *options.set]
    if options.word == "run":
        measure_runs(dict(plan.runs()), words, options.output_dir, options.rows / RUNS, only=options.only)
    else:
        tries = dict(plan.tries(str(trained_as_much(plan, options.output_dir))))
        at, rows = options.output_dir / "tries", options.rows / TRIES
        measure_runs(tries, words, at, rows, only=options.only, trained_in=options.output_dir)


def show(rows: Path, document: Path) -> None:
    """Writes the tables into the document and draws its figures beside the rows."""
    from results.page import Results, draw, with_tables

    results = Results.read(rows)
    document.write_text(with_tables(document.read_text(encoding="utf-8"), results), encoding="utf-8")
    for path in draw(results, rows):
        print(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
