"""Compares ways to recover after a removal: batch norm measured anew on/off × distillation on/off, in equal time.

One network is pruned by one criterion in every way; what differs is what follows a removal. Each way gets as many
seconds of fine-tuning as the plain one takes: the epochs per step of a way are the plain ones times the ratio of the
seconds that an epoch takes, which a first, short pass measures. Writes a CSV and a markdown table:

    python scripts/bench_recovery.py --out recovery --seeds 0,1,2 -- model=resnet56 dataset=imagefolder \\
        dataset.root=FOLDER model.weights=resnet56.safetensors ratio=0.5 finetune=quick
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

#: way -> what it adds to the plain one
WAYS = {
    "plain": (),
    "recalibration": ("finetune.recalibration_images={images}",),
    "distillation": ("finetune.distill={distill}",),
    "both": ("finetune.recalibration_images={images}", "finetune.distill={distill}"),
}
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


def compare(asked: argparse.Namespace) -> pd.DataFrame:
    """Returns a row per way and seed."""
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    rows = []
    for seed in seeds:
        plain_s = None
        for way in WAYS:
            epochs = asked.epochs_per_step
            row = run(words_of(way, asked, epochs, seed), asked.out)
            if plain_s is None:
                plain_s = row["finetune_s"]
            elif row["finetune_s"] > plain_s:
                epochs *= plain_s / row["finetune_s"]
                row = run(words_of(way, asked, epochs, seed), asked.out)
            rows.append(
                {
                    "way": way,
                    "seed": seed,
                    "epochs_per_step": epochs,
                    "finetune_s": row["finetune_s"],
                    "blocks_removed": row["blocks_removed"],
                    "accuracy_base_pct": row["accuracy_base_pct"],
                    "accuracy_pruned_pct": row["accuracy_pruned_pct"],
                    "accuracy_delta_pp": row["accuracy_delta_pp"],
                }
            )
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
    rows.to_csv(asked.out / "recovery.csv", index=False)
    table = markdown(rows)
    (asked.out / "recovery.md").write_text(table, encoding="utf-8")
    print(table, end="")


if __name__ == "__main__":
    main()
