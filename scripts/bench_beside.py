"""Times a run on a quiet machine, beside a busy core of the same login session, and beside one of another session.

python scripts/bench_beside.py                       # a whole `consensus run model=resnet56 ratio=0.5`, four times
python scripts/bench_beside.py model=resnet20        # the words of another run
python scripts/bench_beside.py --short               # 400 updates of a ResNet56 in bf16 instead, a minute in all
python scripts/bench_beside.py --short --threads 2   # a number that may not fall, to see what is at stake

Linux shares the cores between login sessions where `kernel.sched_autogroup_enabled` is 1. The machine must be quiet
otherwise: what others use is printed first. The aim: at most twice the quiet time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from consensus_cli.experiment.threads import Load

AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")
UPDATES, BATCH = 400, 32
#: ends with who started it, however that ends
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"


@dataclass(frozen=True)
class Neighbour:
    """Who computes beside: in which session, and from when on, in seconds (of --short / of a whole run)."""

    name: str
    busy: bool = True
    own_session: bool = False
    after_s: tuple[float, float] = (0.0, 0.0)


NEIGHBOURS = (
    Neighbour("quiet", busy=False),
    Neighbour("beside a core of the same session"),
    Neighbour("beside a core of another session", own_session=True),
    Neighbour("the same from halfway on", own_session=True, after_s=(4.0, 35.0)),
)


def main() -> None:
    """Runs the work beside each neighbour in turn and prints its time, relative to the quiet machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", default=[], help="of the run (model=resnet56 ratio=0.5)")
    parser.add_argument("--short", action="store_true", help="a stretch of training instead of a whole run")
    parser.add_argument("--threads", type=int, help="a fixed number; none: it follows the machine")
    parser.add_argument("--limit-s", type=float, default=600.0, help="seconds after which a run is given up")
    parser.add_argument("--stretch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stretch:
        train_a_stretch(options.threads)
        return
    session = AUTOGROUP.read_text().strip() if AUTOGROUP.exists() else "unknown"
    print(f"sched_autogroup_enabled: {session}; others use {others_pct():.0f} % of the processor before", flush=True)
    quiet_s = None
    for neighbour in NEIGHBOURS:
        seconds, said = timed(neighbour, options)
        quiet_s = quiet_s or seconds
        print(f"{neighbour.name:<36} {seconds:7.1f} s  {seconds / quiet_s:5.2f} ×  {said}", flush=True)


def others_pct() -> float:
    """Returns what others use of the machine in a second of doing nothing, in %."""
    before = Load.now()
    time.sleep(1)
    return Load.now().used_since_pct(before) or 0.0


def timed(neighbour: Neighbour, options: argparse.Namespace) -> tuple[float, str]:
    """Returns the seconds that the work takes, as its own clock says, and what became of its threads."""
    with tempfile.TemporaryDirectory() as folder:
        fixed = [] if options.threads is None else [str(options.threads)]
        if options.short:
            command = [sys.executable, __file__, "--stretch", *(word for n in fixed for word in ("--threads", n))]
        else:
            words = options.words or ["model=resnet56", "ratio=0.5"]
            command = [sys.executable, "-m", "consensus_cli", "run", *words, f"output_dir={folder}"]
            command += [f"threads={n}" for n in fixed]
        with beside(neighbour, neighbour.after_s[0 if options.short else 1]):
            began_s = time.perf_counter()
            try:
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, text=True, check=True, timeout=options.limit_s
                ).stdout
            except subprocess.TimeoutExpired:
                return time.perf_counter() - began_s, "given up"
            whole_s = time.perf_counter() - began_s
        if options.short:
            row = json.loads(done.splitlines()[-1])
        else:
            row = json.loads(next(Path(folder).glob("runs/*/row.json")).read_text()) | {"seconds": whole_s}
    load = row.get("other_load_pct")
    beside_it = "" if load is None else f", others {load:.0f} % in the windows"
    return row["seconds"], f"threads={row['threads']} {row['threads_lowered'] or ''}{beside_it}"


@contextmanager
def beside(neighbour: Neighbour, after_s: float) -> Iterator[None]:
    """Keeps a core busy while the body runs, from `after_s` seconds on; nothing is left running."""
    others: list[subprocess.Popen[bytes]] = []

    def begin() -> None:
        others.append(subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=neighbour.own_session))

    timer = threading.Timer(after_s, begin)
    if neighbour.busy and after_s:
        timer.start()
    elif neighbour.busy:
        begin()
        time.sleep(1)
    try:
        yield
    finally:
        timer.cancel()
        if timer.ident is not None:
            timer.join()
        for other in others:
            other.kill()
            other.wait()


def train_a_stretch(threads: int | None) -> None:
    """Trains a ResNet56 on random digits-sized images and prints seconds and threads as JSON."""
    import torch

    from consensus_cli import training
    from consensus_cli.data.memory import ImageTensors
    from consensus_cli.data.split import Augmentation
    from consensus_cli.experiment.threads import ThreadWatch
    from consensus_cli.models.resnet import ResNet

    torch.manual_seed(0)
    images = torch.randint(0, 256, (BATCH * 40, 1, 16, 16), dtype=torch.uint8)
    split = ImageTensors(images, torch.arange(len(images)) % 10)
    network = ResNet(9, in_channels=1).to(memory_format=torch.channels_last)
    recipe = training.Recipe(
        epochs=UPDATES / 40, batch_size=BATCH, learning_rate=0.01, schedule="constant", milestones=(), momentum=0.9,
        weight_decay=0.0, label_smoothing=0.0,
    )  # fmt: skip
    warn = lambda text: print(text, file=sys.stderr)  # noqa: E731
    began_s = time.perf_counter()
    watch = ThreadWatch(threads, warn)
    watch.look()
    training.train(
        network, split, recipe,
        device=torch.device("cpu"), augmentation=Augmentation(), seed=0, precision="bf16", tick=watch.tick,
    )  # fmt: skip
    seconds = time.perf_counter() - began_s
    row = {"seconds": seconds, "threads": torch.get_num_threads(), "threads_lowered": ", ".join(watch.lowered)}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
