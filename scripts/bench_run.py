"""Times a whole `consensus run` with its parts and its peak memory, from a process of its own.

python scripts/bench_run.py model=resnet56 ratio=0.5
python scripts/bench_run.py experiment=smoke
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STAGES = ("baseline", "score", "finetune", "evaluate")


def main() -> None:
    """Runs the command with the words given to this script and prints where its time went."""
    words = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "consensus_cli", "run", *words, f"output_dir={folder}"]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        whole_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"consensus run {' '.join(words)} ended with exit code {process.returncode}")
        row = json.loads(next(Path(folder).glob("runs/*/row.json")).read_text())
    print(f"consensus run {' '.join(words)}: {whole_s:.1f} s")
    parts = {stage: row[f"{stage}_s"] for stage in STAGES}
    for stage, seconds in parts.items():
        print(f"  {stage:<22} {seconds:7.1f} s  {100 * seconds / whole_s:5.1f} %")
    rest_s = whole_s - sum(parts.values())
    print(f"  {'start, data, files':<22} {rest_s:7.1f} s  {100 * rest_s / whole_s:5.1f} %")
    print(f"peak memory {usage.ru_maxrss / 2**10:.0f} MiB")
    print(
        f"accuracy {row['accuracy_base_pct']:.2f} % → {row['accuracy_pruned_pct']:.2f} %, "
        f"{row['blocks_removed']} blocks removed, {row['device']}, {row['threads']} threads, "
        f"torch {row['torch_version']}"
    )


if __name__ == "__main__":
    main()
