"""Kills a small run with SIGKILL at random moments and resumes it; it must end as if nothing had happened.

    python scripts/chaos_run.py [--kills 20] [--seed 0] [key=value …]

An undisturbed run gives the removed blocks, their scores and the accuracy that every tormented one must come to. A run
that ends before its kill is compared and the next one begins, until all kills have been dealt. Exit code 1 on any
difference, a second row, or a partial file.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

SMALL = (
    "experiment=smoke",
    "ratio=0.5",
    "attacks=none",
    "finetune.epochs_per_step=2",
    "evaluate.energy_window_s=0.2",
    "evaluate.latency_min_run_s=0.02",
    # Beside other work the number would fall in one run and not in another, and with it the last bits.
    "threads=1",
)
SAME = ("removed_blocks", "accuracy_base_pct", "accuracy_pruned_pct", "macs_pruned", "params_pruned")


def start(output_dir: Path, words: list[str]) -> subprocess.Popen[str]:
    """Starts or continues the run of a folder in a process of its own."""
    command = [sys.executable, "-m", "consensus_cli", "run", *SMALL, *words, "if_done=skip", f"output_dir={output_dir}"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def finish(output_dir: Path, words: list[str]) -> float:
    """Lets the run come to its end and returns how long that took, in seconds."""
    began_s = time.perf_counter()
    process = start(output_dir, words)
    _, told = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"a run ended with exit code {process.returncode}:\n{told}")
    return time.perf_counter() - began_s


def torment(output_dir: Path, words: list[str], longest_s: float, kills: int, rng: random.Random) -> int:
    """Kills the run of a folder at most `kills` times and resumes it until it is done; returns the number of kills."""
    dealt = 0
    while dealt < kills:
        process = start(output_dir, words)
        try:
            process.communicate(timeout=rng.uniform(0, longest_s))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            dealt += 1
        else:
            return dealt
    finish(output_dir, words)
    return dealt


def faults(undisturbed: Path, tormented: Path) -> list[str]:
    """Returns every difference between the results of two folders, and whatever a kill has left behind."""
    expected, found = (pd.read_csv(folder / "results.csv") for folder in (undisturbed, tormented))
    if len(found) != 1:
        return [f"{len(found)} rows instead of one"]
    problems = [f"status is {found['status'][0]}"] if found["status"][0] != "done" else []
    problems += [
        f"{column} is {found[column][0]} instead of {expected[column][0]}"
        for column in SAME
        if found[column][0] != expected[column][0]
    ]
    scores = [
        (folder / "runs" / rows["run_id"][0] / "scores.csv")
        for folder, rows in ((undisturbed, expected), (tormented, found))
    ]
    if scores[0].read_bytes() != scores[1].read_bytes():
        problems.append("the scores differ")
    left = [*tormented.rglob("*.part"), *tormented.rglob("state.safetensors"), *tormented.glob("*.rejected")]
    problems += [f"left behind: {path}" for path in left]
    if len(list((tormented / "runs").iterdir())) != 1:
        problems.append("more than one run directory")
    return problems


def main() -> int:
    """Runs the test in a temporary folder; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("words", nargs="*", help="settings of the run, such as model=resnet56")
    arguments = parser.parse_args()
    rng, dealt, problems = random.Random(arguments.seed), 0, []
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Path(folder) / "undisturbed"
        longest_s = finish(undisturbed, arguments.words)
        print(f"undisturbed: {longest_s:.1f} s")
        for turn in itertools.count():
            if dealt == arguments.kills:
                break
            tormented = Path(folder) / f"tormented-{turn}"
            kills = torment(tormented, arguments.words, longest_s, arguments.kills - dealt, rng)
            dealt += kills
            found = faults(undisturbed, tormented)
            print(f"run {turn + 1}: {kills} kills, {'the same result' if not found else '; '.join(found)}", flush=True)
            problems += found
    print(f"{dealt} kills, {len(problems)} faults")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
