"""Does `prune=latency ratio=0.3` save 30 % of the latency, and what is weighing blocks by what they save worth?

Each network is pruned in four ways from the same trained original, three of them until the same measured saving is
reached, so that their accuracies compare at equal latency. Every pair of networks is then loaded from the run's files
and timed by a loop of this script alone, which shares no code with what decided. A run that is done is not repeated,
and its row not measured again: the script can be stopped at any time.

    python scripts/bench_targets.py measure --root FOLDER --rows docs/study -- threads=2
    python scripts/bench_targets.py table --rows docs/study

FOLDER holds train/ and test/ with a folder per class. Words behind `--` are settings of every run.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student_t
from study.markdown import markdown
from study.rows import Rows

import consensus_cli as cc
from consensus_cli.errors import InterruptedRunError, UserError, tell
from consensus_cli.models import zoo
from consensus_cli.models.spec import ModelSpec

NETWORKS = {
    # Its depthwise convolutions train half as fast in bf16 on a CPU.
    "mobilenet_v2": ("model=mobilenet_v2", "precision=fp32"),
    "regnety_004": ("model=timm", "model.name=regnety_004"),
    "convnext_atto": ("model=timm", "model.name=convnext_atto"),
}
SAVING = 0.3
#: way -> how it is pruned
WAYS = {
    "by latency": ("prune=latency", "criterion.per=latency", "prune.overshoot=0.02"),
    "by MACs": ("prune=latency", "criterion.per=macs", "prune.overshoot=0.02"),
    "in order": ("prune=latency",),
    "prune=macs": ("prune=macs",),
}
WORDS = (
    *("dataset=imagefolder", "dataset.image_size=64", "criterion=kl", "attacks=none"),
    *("baseline.epochs=8", "finetune=short", "finetune.final_epochs=3", "finetune.learning_rate=0.05"),
    *("evaluate.latency_min_run_s=1", "evaluate.energy_repeats=1", "if_done=skip", f"ratio={SAVING}"),
)
#: of the original, of the pruned network, and of their ratio, turn after turn
TURNS, RESAMPLES = 300, 2000


def main() -> int:
    """Measures what is missing, or prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "table"))
    parser.add_argument("--root", help="the folder of the images")
    parser.add_argument("--rows", type=Path, default=Path("docs/study"))
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/targets"))
    parser.add_argument("--networks", default=",".join(NETWORKS), type=lambda text: text.split(","))
    parser.add_argument("--ways", default=",".join(WAYS), type=lambda text: text.split(","))
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("settings", nargs="*", metavar="key=value")
    asked = parser.parse_intermixed_args()
    if asked.what == "table":
        print(tables(Rows(asked.rows, "targets").read()))
        return 0
    try:
        measure(asked)
    except UserError as error:
        tell(error)
        return 2
    except InterruptedRunError as stop:
        print(f"interrupted by {stop}; the same command goes on")
        return 128 + stop.signal_number
    return 0


def measure(asked: argparse.Namespace) -> None:
    """Runs what has no row yet, and times what came out."""
    rows, found = Rows(asked.rows, "targets"), Rows(asked.rows, "targets").read()
    known = set(zip(found["network"], found["way"], found["seed"], strict=True))
    # Seed after seed, so that what is there when it is stopped can be compared.
    for seed in asked.seeds:
        for network in asked.networks:
            for way in asked.ways:
                if (network, way, seed) not in known:
                    own = (*NETWORKS[network], *WAYS[way], f"seed={seed}", f"output_dir={asked.output_dir}")
                    result = cc.run(*WORDS, f"dataset.root={asked.root}", *own, *asked.settings)
                    rows.add({"network": network, "way": way, "seed": seed} | row(result))
                    print(f"{network}, {way}, seed {seed}: done")


def row(result: cc.RunResult) -> dict[str, object]:
    """Returns what a run says of itself, and what the loop of this script finds."""
    said = result.row
    torch.set_num_threads(int(said["threads"]))  # type: ignore[call-overload]
    structure = json.loads((result.path / "checkpoints" / "pruned.json").read_text())["model"]
    channels = structure.pop("in_channels")
    # As the certificate says that it was measured.
    memory_format = getattr(torch, json.loads((result.path / "certificate.json").read_text())["memory_format"])
    original = zoo.build(ModelSpec(**structure), channels).eval().to(memory_format=memory_format)
    image = torch.rand(1, channels, 64, 64).contiguous(memory_format=memory_format)
    share, low, high = saving(original, result.pruned().to(memory_format=memory_format), image)
    taken = ("blocks_candidates", "blocks_removed", "removed_blocks", "threads", "macs_reduction_pct")
    taken += ("accuracy_base_pct", "accuracy_pruned_pct", "test_images", "goal_latency_saved_pct")
    taken += ("goal_latency_saved_low_pct", "goal_latency_saved_high_pct", "run_id")
    again = {"saved_pct": 100 * share, "saved_low_pct": 100 * low, "saved_high_pct": 100 * high}
    return {name: said.get(name) for name in taken} | again


@torch.no_grad()
def saving(original: torch.nn.Module, pruned: torch.nn.Module, image: torch.Tensor) -> tuple[float, float, float]:
    """Returns the share of the latency that is saved, with its 95 % interval: single passes in turn, bootstrapped."""
    times_s = np.zeros((TURNS, 2))
    for turn in range(-10, TURNS):
        for i in (0, 1) if turn % 2 else (1, 0):
            network = (original, pruned)[i]
            # What ran in between has left the caches to the other network.
            network(image)
            start_s = time.perf_counter()
            network(image)
            times_s[turn, i] = time.perf_counter() - start_s
    ratios = times_s[:, 1] / times_s[:, 0]
    draws = np.random.default_rng(0).integers(0, TURNS, (RESAMPLES, TURNS))
    high, low = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    return 1 - float(np.median(ratios)), 1 - low, 1 - high


def tables(rows: pd.DataFrame) -> str:
    """Returns, in markdown, what every way saves and keeps over the seeds, and what weighing by latency is worth."""
    lines = [
        [
            *key,
            mean_of(group["saved_pct"]),
            f"{int(((group['saved_pct'] - 100 * SAVING).abs() <= 3).sum())} of {len(group)}",
            mean_of(group["macs_reduction_pct"]),
            mean_of(group["accuracy_base_pct"]),
            mean_of(group["accuracy_pruned_pct"]),
        ]
        for key, group in rows.groupby(["network", "way"], sort=False)
    ]
    head = ["network", "way", "latency saved, %", "within 30 ± 3", "MACs saved, %", "original, %", "pruned, %"]
    by_way = rows.pivot_table(index=["network", "seed"], columns="way", values="accuracy_pruned_pct")
    gained = [
        [network, way, mean_of((group["by latency"] - group[way]).dropna())]
        for network, group in by_way.groupby("network")
        for way in WAYS
        if way != "by latency" and {"by latency", way} <= set(group)
    ]
    return f"{markdown(head, lines)}\n\n{markdown(['network', 'by latency against', 'accuracy, pp'], gained)}"


def mean_of(values: pd.Series) -> str:
    """Returns the mean with half of its 95 % interval (Student's t over seeds)."""
    if len(values) < 2:
        return f"{values.mean():.1f}"
    half = student_t.ppf(0.975, len(values) - 1) * values.std() / len(values) ** 0.5
    return f"{values.mean():.1f} ± {half:.1f}"


if __name__ == "__main__":
    raise SystemExit(main())
