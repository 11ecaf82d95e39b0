"""Compares ways to recover after a removal: batch norm measured anew on/off × distillation on/off, in equal time.

One network is pruned by one criterion in every way; what differs is what follows a removal. Each way gets as many
seconds of fine-tuning as the plain one: its epochs per step follow from the seconds of a step's training with and
without a teacher and of a new measure of batch norm, on the network with half of the blocks gone, timed several times
in turn in one process before the runs. So the machine's speed, which changes while the runs take place, favours none.
Writes a CSV and a markdown table:

    python scripts/bench_recovery.py --out recovery --seeds 0,1,2 -- model=resnet56 dataset=imagefolder \\
        dataset.root=FOLDER model.weights=resnet56.safetensors ratio=0.5 finetune=quick
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from consensus_cli import training
from consensus_cli.config.composition import compose_run
from consensus_cli.experiment import recipes
from consensus_cli.experiment.prepare import prepare
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.screen import QuietScreen

#: way -> what it adds to the plain one
WAYS = {
    "plain": (),
    "recalibration": ("finetune.recalibration_images={images}",),
    "distillation": ("finetune.distill={distill}",),
    "both": ("finetune.recalibration_images={images}", "finetune.distill={distill}"),
}
#: columns of a run's row that the table keeps
KEPT = ("finetune_s", "blocks_removed", "accuracy_base_pct", "accuracy_pruned_pct", "accuracy_delta_pp")
#: how often each way is timed
TURNS = 3
#: nothing but accuracy is asked for
WITHOUT_THE_REST = ("attacks=none", "evaluate.energy_window_s=0.1", "evaluate.energy_repeats=1")


def run(words: list[str], output_dir: Path) -> dict[str, float]:
    """Runs the command in a process of its own and returns its row."""
    before = set(output_dir.glob("runs/*/row.json"))
    command = [sys.executable, "-m", "consensus_cli", "run", *words, *WITHOUT_THE_REST, f"output_dir={output_dir}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (written,) = set(output_dir.glob("runs/*/row.json")) - before
    return json.loads(written.read_text())


def words_of(way: str, asked: argparse.Namespace, epochs: float, seed: int) -> list[str]:
    """Returns the settings of one run."""
    added = [word.format(images=asked.recalibration_images, distill=asked.distill) for word in WAYS[way]]
    return [*asked.words, *added, f"finetune.epochs_per_step={epochs:.4f}", "finetune.final_epochs=0", f"seed={seed}"]


def epochs_in_equal_time(asked: argparse.Namespace) -> dict[str, float]:
    """Returns the epochs per step that take each way as long as `--epochs-per-step` take the plain one."""
    both = words_of("both", asked, asked.epochs_per_step, seed=0)
    prepared = prepare(compose_run(both), QuietScreen(Console(quiet=True)))
    images, network = prepared.images, copy.deepcopy(prepared.fresh)
    batch_size = prepared.config.finetune.batch_size
    # The student shrinks while the teacher does not: half-way is the average of all steps.
    removable = [block.name for block in prepared.blocks if block.removable]
    remove_blocks(network.network, removable[: prepared.target_blocks // 2])
    plain = recipes.part_of_epoch(prepared.config, asked.epochs_per_step)
    shared = {"device": prepared.device, "augmentation": images.augmentation, "seed": 0}

    def trains(distill: float) -> Callable[[], object]:
        recipe, teacher = replace(plain, distill=distill), prepared.fresh
        return lambda: training.train(
            network, images.train, recipe, **shared, precision=prepared.precision, teacher=teacher
        )

    work = {
        "plain": trains(0.0),
        "taught": trains(asked.distill),
        "recalibration": lambda: training.recalibrate_batch_norm(
            network, images.train, images=asked.recalibration_images, batch_size=batch_size, **shared
        ),
    }
    times_s: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(1 + TURNS):
        for name, do in work.items():
            started_s = time.perf_counter()
            do()
            times_s[name].append(time.perf_counter() - started_s)
    # The first turn warms up.
    seconds = {name: statistics.median(times[1:]) for name, times in times_s.items()}
    plain_s, taught_s, recalibration_s = seconds["plain"], seconds["taught"], seconds["recalibration"]
    print(
        f"{asked.epochs_per_step} epochs take {plain_s:.2f} s, with a teacher {taught_s:.2f} s, "
        f"{asked.recalibration_images} images of recalibration {recalibration_s:.2f} s",
        file=sys.stderr,
    )
    if recalibration_s >= plain_s:
        raise SystemExit("recalibration alone takes longer than the plain way: more --epochs-per-step, or fewer images")
    left = (plain_s - recalibration_s) / plain_s
    shares = {
        "plain": 1.0,
        "recalibration": left,
        "distillation": plain_s / taught_s,
        "both": left * plain_s / taught_s,
    }
    return {way: share * asked.epochs_per_step for way, share in shares.items()}


def compare(asked: argparse.Namespace) -> pd.DataFrame:
    """Returns a row per way and seed."""
    epochs = epochs_in_equal_time(asked)
    rows = []
    for seed in map(int, asked.seeds.split(",")):
        for way in WAYS:
            row = run(words_of(way, asked, epochs[way], seed), asked.out)
            rows.append({"way": way, "seed": seed, "epochs_per_step": epochs[way]} | {name: row[name] for name in KEPT})
            pd.DataFrame(rows).to_csv(asked.out / "recovery.csv", index=False)
    return pd.DataFrame(rows)


def markdown(rows: pd.DataFrame) -> str:
    """Returns a table with a line per way: means over the seeds, and the range of the accuracy."""
    lines = [
        "| way | epochs per step | fine-tuning s | accuracy % | range % | change pp |",
        "|---|---|---|---|---|---|",
    ]
    for way, group in rows.groupby("way", sort=False):
        mean = group.mean(numeric_only=True)
        accuracy = group["accuracy_pruned_pct"]
        lines.append(
            f"| {way} | {mean['epochs_per_step']:.2f} | {mean['finetune_s']:.0f} | {accuracy.mean():.2f} "
            f"| {accuracy.min():.2f} to {accuracy.max():.2f} | {mean['accuracy_delta_pp']:+.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="settings of the run, after --")
    parser.add_argument("--out", type=Path, default=Path("recovery"), help="folder of the runs and both tables")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs-per-step", type=float, default=1.0, help="of the plain way")
    parser.add_argument("--recalibration-images", type=int, default=2048)
    parser.add_argument("--distill", type=float, default=0.5)
    asked = parser.parse_args()
    rows = compare(asked)
    table = markdown(rows)
    (asked.out / "recovery.md").write_text(table, encoding="utf-8")
    print(table, end="")


if __name__ == "__main__":
    main()
