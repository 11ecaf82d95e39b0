"""Times the first contact: `consensus --help`, `consensus list`, and from `consensus list blocks` to its table.

python scripts/bench_startup.py                # beside `import torch` alone, five rounds
python scripts/bench_startup.py --rounds 9

The commands take turns, after one round that does not count: it warms the disk. CPU time (user + system) hardly depends
on what else runs; wall-clock time does, and is comparable only within one round. The aim: the table within 3 s.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "import torch": ("-c", "import torch"),
    "consensus --help": ("-m", "consensus_cli", "--help"),
    "consensus list": ("-m", "consensus_cli", "list"),
    "consensus list blocks model=resnet56": ("-m", "consensus_cli", "list", "blocks", "model=resnet56"),
}


def timed(words: tuple[str, ...]) -> tuple[float, float]:
    """Returns CPU and wall-clock seconds of one Python process."""
    before, start_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall_s, after = time.perf_counter() - start_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall_s


def main() -> None:
    """Prints the median of each command, in multiples of `import torch` too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (5)")
    options = parser.parse_args()
    rounds = [{name: timed(words) for name, words in COMMANDS.items()} for _ in range(1 + options.rounds)][1:]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {options.rounds}")
    torch_s = statistics.median(found["import torch"][0] for found in rounds)
    for name in COMMANDS:
        cpu_s, wall_s = (statistics.median(found[name][i] for found in rounds) for i in (0, 1))
        print(f"{name:<37} CPU {cpu_s:5.2f} s, wall {wall_s:5.2f} s, {cpu_s / torch_s:.2f} × import torch")


if __name__ == "__main__":
    main()
