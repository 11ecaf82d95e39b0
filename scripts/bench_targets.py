"""Does `prune=latency ratio=0.3` save 30 % of the latency, and what is weighing blocks by what they save worth?

Each network is pruned in five ways from the same trained original, all but one until the same measured saving is
reached, so that their accuracies compare at equal latency. Every pair of networks is then loaded from the run's files
and timed by a loop of this script alone, which shares no code with what decided. A run that is done is not repeated,
and its row not measured again: the script can be stopped at any time.

    python scripts/bench_targets.py measure --root FOLDER --rows docs/study -- threads=2
    python scripts/bench_targets.py page     # fills the tables of docs/costs.md

FOLDER holds train/ and test/ with a folder per class. Words behind `--` are settings of every run.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student_t
from study.markdown import NOT_MEASURED, filled, markdown
from study.rows import Rows

import consensus_cli as cc
from consensus_cli.errors import InterruptedRunError, ToldError, UserError, tell, unknown_name
from consensus_cli.models import zoo
from consensus_cli.models.spec import ModelSpec

NETWORKS = {
    # Its depthwise convolutions train half as fast in bf16 on a CPU.
    "mobilenet_v2": ("model=mobilenet_v2", "precision=fp32"),
    "regnety_004": ("model=timm", "model.name=regnety_004"),
    # Without batch norm it diverges at the others' rate; at timm's 1e-6 its blocks would still be next to nothing.
    "convnext_atto": (
        *("model=timm", "model.name=convnext_atto", "model.kwargs={ls_init_value: 0.1}"),
        *("baseline.learning_rate=0.05", "finetune.learning_rate=0.02"),
    ),
}
SAVING, NEAR_PCT = 0.3, 3
PAGE = Path(__file__).parents[1] / "docs" / "costs.md"
#: way -> how it is pruned
WAYS = {
    "by latency": ("prune=latency", "criterion.per=latency", "prune.overshoot=0.02"),
    "by MACs": ("prune=latency", "criterion.per=macs", "prune.overshoot=0.02"),
    "in order": ("prune=latency",),
    "prune=macs": ("prune=macs",),
    "at random": ("prune=latency", "criterion=random"),
}
WORDS = (
    *("criterion=kl", "dataset=imagefolder", "dataset.image_size=64", "attacks=none"),
    *("baseline.epochs=8", "finetune=short", "finetune.final_epochs=3", "finetune.learning_rate=0.05"),
    *("evaluate.latency_min_run_s=1", "evaluate.energy_repeats=1", "if_done=skip", f"ratio={SAVING}"),
)
#: of the original, of the pruned network, and of their ratio, turn after turn
TURNS, RESAMPLES = 300, 2000


def main() -> int:
    """Measures what is missing, or fills the tables of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "page"))
    parser.add_argument("--root", help="the folder of the images")
    parser.add_argument("--rows", type=Path, default=Path("docs/study"))
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/targets"))
    parser.add_argument("--networks", default=",".join(NETWORKS), type=lambda text: text.split(","))
    parser.add_argument("--ways", default=",".join(WAYS), type=lambda text: text.split(","))
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("settings", nargs="*", metavar="key=value")
    asked = parser.parse_intermixed_args()
    if asked.what == "page":
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), asked.rows), encoding="utf-8")
        return 0
    try:
        measure(asked)
    except ToldError as error:
        tell(error)
        return 2 if isinstance(error, UserError) else 1
    except InterruptedRunError as stop:
        print(f"interrupted by {stop}; the same command goes on")
        return 128 + stop.signal_number
    return 0


def measure(asked: argparse.Namespace) -> None:
    """Runs what has no row yet, and times what came out."""
    for kind, names, known_names in (("network", asked.networks, NETWORKS), ("way", asked.ways, WAYS)):
        for name in names:
            if name not in known_names:
                raise unknown_name(kind, name, known_names)
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


def with_tables(text: str, folder: Path) -> str:
    """Returns the page with its tables made anew from the rows in a folder."""
    rows = Rows(folder, "targets").read()
    return filled(text, {"targets": partial(reached, rows), "targets_kept": partial(kept, rows)})


def reached(rows: pd.DataFrame) -> str:
    """Returns, in markdown, what every way saves and keeps over the seeds."""
    if rows.empty:
        return NOT_MEASURED
    lines = []
    for network, way in [(network, way) for network in rows["network"].unique() for way in WAYS]:
        group = rows[(rows["network"] == network) & (rows["way"] == way)]
        if group.empty:
            continue
        near = int(((group["saved_pct"] - 100 * SAVING).abs() <= NEAR_PCT).sum())
        said, again = (mean_of(group[name]) for name in ("goal_latency_saved_pct", "saved_pct"))
        others = ("macs_reduction_pct", "accuracy_base_pct", "accuracy_pruned_pct")
        within = f"{near} of {len(group)}"
        lines.append([network, way, said, again, within, *(mean_of(group[name]) for name in others)])
    head = ["network", "way", "saved, the run says (%)", "saved, the loop says (%)", f"within 30 ± {NEAR_PCT}"]
    return markdown([*head, "MACs saved (%)", "accuracy before (%)", "after (%)"], lines)


def kept(rows: pd.DataFrame) -> str:
    """Returns, in markdown, what weighing by latency is worth: seed by seed the same original."""
    by_way = rows.pivot_table(index=["network", "seed"], columns="way", values="accuracy_pruned_pct")
    lines = [
        [network, way, mean_of(differences), " ".join(f"{value:+.2f}" for value in differences)]
        for network, group in by_way.groupby("network", sort=False)
        for way in WAYS
        if way != "by latency" and {"by latency", way} <= set(group)
        if len(differences := (group["by latency"] - group[way]).dropna())
    ]
    return markdown(["network", "against", "accuracy (pp)", "seed by seed"], lines) if lines else NOT_MEASURED


def mean_of(values: pd.Series) -> str:
    """Returns the mean with half of its 95 % interval (Student's t over seeds)."""
    if values.isna().any():
        return "–"
    if len(values) < 2:
        return f"{values.mean():.1f}"
    half = student_t.ppf(0.975, len(values) - 1) * values.std() / len(values) ** 0.5
    return f"{values.mean():.1f} ± {half:.1f}"


if __name__ == "__main__":
    raise SystemExit(main())
