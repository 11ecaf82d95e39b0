"""Many processes append to one results file while some of them are killed; checks that no completed append is lost.

    python scripts/stress_results.py [--processes 8] [--appends 50] [--kills 4] [--seed 0]

Each process notes an append in a journal of its own after it has returned. At the end every row in a journal must be
in the file once and unchanged, and a process that was not killed must have made all its appends. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd

from consensus_cli.storage.results import COLUMNS, append_row, read_rows


def make_row(process: int, index: int) -> dict[str, object]:
    """Returns the row that process `process` appends as its `index`-th: long texts, and now and then a new column."""
    rng = random.Random(f"{process}/{index}")
    row: dict[str, object] = dict.fromkeys(COLUMNS)
    row |= {"run_id": f"{process}-{index}", "status": "done", "started_at": f"2025-01-01T00:{process:02}:{index:02}Z"}
    row["overrides"] = "".join(rng.choices('ab,"\n\r;é', k=rng.choice([10, 100, 20_000])))
    row["accuracy_base_pct"] = rng.random() * 100
    if index % 10 == 9:
        row[f"attack{process}_pct"] = float(index)
    return row


def work(results: Path, journal: Path, process: int, appends: int) -> None:
    """Appends rows and notes each in the journal once it is written."""
    with journal.open("ab", buffering=0) as notes:
        for index in range(appends):
            append_row(results, make_row(process, index), lock_timeout_s=120.0)
            notes.write(f"{process}-{index}\n".encode())


def kill_some(workers: dict[int, BaseProcess], journals: dict[int, Path], victims: dict[int, int]) -> list[int]:
    """Waits for the workers; kills each victim a moment after its journal has the given number of entries."""
    killed: list[int] = []
    waiting = dict(victims)
    while any(worker.is_alive() for worker in workers.values()):
        for process, entries in list(waiting.items()):
            if len(completed(journals[process])) >= entries:
                time.sleep(random.uniform(0.0, 0.01))
                workers[process].kill()
                workers[process].join()
                del waiting[process]
                if workers[process].exitcode != 0:
                    killed.append(process)
        time.sleep(0.001)
    return killed


def completed(journal: Path) -> list[str]:
    """Returns the run ids in a journal; a line without its end was never finished."""
    if not journal.exists():
        return []
    return [line.strip() for line in journal.read_text().splitlines(keepends=True) if line.endswith("\n")]


def faults(results: Path, journals: dict[int, Path], killed: list[int], appends: int) -> list[str]:
    """Returns everything that is wrong with the results file."""
    found: list[str] = []
    # The next writer after a crash mends the file; this one stands for it.
    append_row(results, make_row(len(journals), 0))
    rows = read_rows(results).set_index("run_id", drop=False)
    counts = Counter(rows.index)
    found += [f"row {run_id} is there {count} times" for run_id, count in counts.items() if count > 1]
    for process, journal in journals.items():
        done = completed(journal)
        found += [f"completed append {run_id} is lost" for run_id in done if counts[run_id] == 0]
        if process not in killed and len(done) != appends:
            found.append(f"process {process} was not killed and made {len(done)} of {appends} appends")
    for run_id in counts:
        expected = make_row(*map(int, run_id.split("-")))
        values = {name: value for name, value in expected.items() if value is not None}
        if rows.loc[[run_id], list(values)].iloc[0].to_dict() != values:
            found.append(f"row {run_id} is not what was written")
    if len(pd.read_csv(results)) != len(rows):
        found.append("pandas reads another number of rows")
    return found + [f"a partial file is left: {file.name}" for file in results.parent.glob(".*.part")]


def stress(folder: Path, processes: int, appends: int, kills: int, seed: int) -> list[str]:
    """Runs the workers in `folder` and returns the faults."""
    rng = random.Random(seed)
    results = folder / "results.csv"
    journals = {process: folder / f"journal-{process}" for process in range(processes)}
    victims = {process: rng.randrange(appends) for process in rng.sample(range(processes), kills)}
    context = multiprocessing.get_context("fork")
    workers: dict[int, BaseProcess] = {}
    for process, journal in journals.items():
        workers[process] = context.Process(target=work, args=(results, journal, process, appends))
        workers[process].start()
    killed = kill_some(workers, journals, victims)
    problems = faults(results, journals, killed, appends)
    rejected = folder / "results.csv.rejected"
    torn_bytes = rejected.stat().st_size if rejected.exists() else 0
    total = sum(len(completed(journal)) for journal in journals.values())
    print(f"{total} completed appends, {len(killed)} processes killed, {torn_bytes} torn bytes set aside")
    return problems


def main() -> int:
    """Runs the stress test in a temporary folder; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--appends", type=int, default=50)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        problems = stress(Path(folder), arguments.processes, arguments.appends, arguments.kills, arguments.seed)
    for problem in problems:
        print(problem, file=sys.stderr)
    print("failed" if problems else "every completed append is there once")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
