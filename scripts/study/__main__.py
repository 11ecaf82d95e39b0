"""The command behind `scripts/study.sh`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from consensus_cli.errors import UserError, tell
from consensus_cli.screen import Screen

ROOT = Path(__file__).resolve().parents[2]
HEALING = ("healing", "healing-tuned", "healing-robustness")
MEASUREMENTS = ("one-shot", "tuned", "stepwise", "robustness", "costs", *HEALING)


def main(words: list[str]) -> int:
    """Carries out one word of the study; returns the exit code: 2 for a mistake of the user's."""
    options = parser().parse_args(words)
    try:
        if options.word in MEASUREMENTS:
            measure(options)
        elif options.word == "collect":
            from study.iterative import collect

            collect(options.output_dir, options.rows)
        elif options.word == "collect-vit":
            from study.healing import collect_vit

            collect_vit(options.output_dir, options.rows)
        else:
            show(options)
    except UserError as error:
        tell(error)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """Returns the words and options of the command."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "consensus"
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--rows", type=Path, default=ROOT / "docs" / "study", help="folder of the CSV files")
    commands = argparse.ArgumentParser(prog="scripts/study.sh", description="Does the consensus decide better?")
    words = commands.add_subparsers(dest="word", required=True)
    for word in MEASUREMENTS:
        measuring = words.add_parser(word, parents=[parent])
        measuring.add_argument("--root", type=Path, help="folder with train/ and test/, or with the CIFAR-10 archive")
        measuring.add_argument(
            "--weights", type=Path, default=ROOT / "../shared/data/resnet56_cifar10jpeg.safetensors", help="of ResNet56"
        )
        measuring.add_argument("--cache", type=Path, default=cache, help="folder of unpacked and decoded images")
        measuring.add_argument("--device", default="auto", help="auto, cpu, cuda")
    for word, runs in (("collect", "iterative runs"), ("collect-vit", "runs of healing-vit")):
        collecting = words.add_parser(word, parents=[parent])
        collecting.add_argument("output_dir", type=Path, help=f"folder of the results of the {runs}")
    words.add_parser("figures", parents=[parent])
    tables = words.add_parser("tables", parents=[parent])
    tables.add_argument("--document", type=Path, default=ROOT / "docs" / "study.md")
    return commands


def measure(options: argparse.Namespace) -> None:
    """Takes the measurements of one word that are not in the rows yet."""
    from study import after, healing, oneshot
    from study.bench import load_bench, unpacked
    from study.plan import Plan

    root = options.root or unpacked(ROOT / "../shared/data/cifar10-jpeg.tar.xz", options.cache)
    bench = load_bench(root, options.weights, options.cache, Plan(), options.device)
    stages = {
        "one-shot": oneshot.measure,
        "tuned": after.measure_tuned,
        "stepwise": after.measure_stepwise,
        "robustness": after.measure_robustness,
        "costs": after.measure_costs,
        "healing": healing.measure,
        "healing-tuned": healing.measure_tuned,
        "healing-robustness": healing.measure_robustness,
    }
    stages[options.word](bench, options.rows, Screen())


def show(options: argparse.Namespace) -> None:
    """Draws the figures, or writes the tables into the document."""
    from study.evidence import Evidence
    from study.figures import draw
    from study.tables import update

    evidence = Evidence.of_resnet56(options.rows)
    if options.word == "tables":
        update(options.document, evidence)
    else:
        for path in draw(evidence, options.rows):
            print(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
