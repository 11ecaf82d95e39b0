"""Several processes do what one does: the same scores and blocks, one row; and none of them waits for a dead one."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from helpers.quick import QUICK
from torch import distributed
from torch.multiprocessing import spawn

from consensus_cli.cli import main as cli
from consensus_cli.cli import sweep
from consensus_cli.cli.main import main
from consensus_cli.config.composition import compose_run, compose_runs
from consensus_cli.data.share import Share
from consensus_cli.errors import JobEndedError, RunFailedError, UserError
from consensus_cli.experiment import checks, pipeline
from consensus_cli.experiment.distributed import join

REPOSITORY = Path(__file__).parents[1]
SHORT = (*QUICK, "baseline.epochs=4", "baseline.learning_rate=0.05", "precision=fp32", "attacks=none", "ratio=0.34")


def start(words: list[str]) -> subprocess.Popen[str]:
    return start_job("run", *SHORT, *words)


def start_job(*words: str) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [sys.executable, *launcher, "-m", "consensus_cli", *words]
    return subprocess.Popen(
        command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


@pytest.fixture(autouse=True)
def _one_job_per_test() -> Iterator[None]:
    join.cache_clear()
    yield
    join.cache_clear()


def test_alone_the_share_is_everything() -> None:
    share = join()
    assert (share.rank, share.world, share.leads) == (0, 1, True)
    assert share.merge(lambda: 7, list) == [7]
    assert share.lead(lambda: 8) == share.agree(lambda: 8) == 8
    assert share.part(5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("count", "unit"), [(10, 1), (10, 4), (3, 4), (0, 1)])
def test_the_parts_of_all_processes_are_everything_in_order(count: int, unit: int) -> None:
    parts = [Share(rank, 3).part(count, unit).tolist() for rank in range(3)]
    assert [position for part in parts for position in part] == list(range(count))
    assert all(part[0] % unit == 0 for part in parts if part)


def test_two_processes_merge_lead_agree_and_fail_together(tmp_path: Path) -> None:
    spawn(two_shares, args=(str(tmp_path),), nprocs=2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0] == {
        "merged": [0, 10],
        "led": 0,
        "agreed_order": [0, 1],
        "weights": [0.0, 0.0],
        "errors": ["rank 1 misses a file", "nothing combines"],
        "shared": [True, True],
    }


def test_sharded_models_are_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main(["run", *SHORT]) == 2
    assert "FSDP is not supported" in capsys.readouterr().err


def test_a_job_that_only_the_environment_speaks_of_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["run", *SHORT]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: WORLD_SIZE=2 in the environment, but there is no job to join")
    assert hint == "hint: start several processes with torchrun, or unset WORLD_SIZE"


def test_what_all_processes_find_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["nosuch"]) == 2
    monkeypatch.setattr(cli, "_answer", raising(JobEndedError("another process of this job has ended", "")))
    assert main(["run"]) == 1
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert main(["run"]) == 1
    assert "another process of this job has ended" in capsys.readouterr().err


def test_a_sweep_in_a_job_ends_with_a_run_that_only_one_process_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consensus_cli.experiment.distributed.world", lambda: 2)
    for error in (ValueError("a bug"), JobEndedError("another process of this job has ended", "")):
        runs = raising(error)
        monkeypatch.setattr(pipeline, "run", runs)
        with pytest.raises(SystemExit, match="1"):
            main(["run", *SHORT, "-m", "seed=0,1", f"output_dir={tmp_path}"])
        with pytest.raises(type(error)):
            sweep._follow(compose_runs(["seed=0,1"], multirun=True), sweeping=True)
        assert runs.call_count == 2


def test_a_batch_too_small_for_the_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(UserError, match=r"finetune.batch_size=8 .* 8 processes"):
        checks.check(compose_run(["finetune.batch_size=8"]))


TRAINED = """
import sys
import torch
from torch import nn
from consensus_cli import training
from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.split import Augmentation
from consensus_cli.experiment.distributed import join

share = join()
generator = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (64, 1, 4, 4), generator=generator).to(torch.uint8)
split = ImageTensors(images, torch.arange(64) % 3)
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
# Never runs, as an auxiliary head of which the loss knows nothing.
model[2].auxiliary = nn.Linear(8, 3)
recipe = training.Recipe(epochs=3, learning_rate=0.1, schedule="cosine", milestones=(), momentum=0.9,
                         weight_decay=1e-3, batch_size=16, accumulate_batches=1, label_smoothing=0.0)
training.train(model, split, recipe, device=torch.device("cpu"), augmentation=Augmentation(), seed=1, precision="fp32",
               share=share)
if share.leads:
    torch.save(model.state_dict(), sys.argv[1])
if share.world > 1:
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one(tmp_path: Path) -> None:
    """Without batch norm, which sees the images of its own process only, the gradients are those of one process."""
    script = tmp_path / "train.py"
    script.write_text(TRAINED)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for words, name in (([], "one.pt"), (launcher, "two.pt")):
        subprocess.run([sys.executable, *words, str(script), str(tmp_path / name)], cwd=REPOSITORY, check=True)
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "two.pt"))
    for key, weights in one.items():
        torch.testing.assert_close(two[key], weights, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_processes_score_and_prune_as_one_and_only_one_writes(tmp_path: Path) -> None:
    words = [f"output_dir={tmp_path}", "scoring.bootstrap=5", "scoring.against=original", "finetune.distill=0.3"]
    assert main(["run", *SHORT, *words]) == 0
    job = start(words)
    out, err = job.communicate(timeout=240)
    assert job.returncode == 0, err
    assert out.count("consensus 0.1.0") == 1
    rows = pd.read_csv(tmp_path / "results.csv")
    assert len(rows) == 2
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert rows["removed_blocks"].nunique() == 1
    assert rows["accuracy_base_pct"].nunique() == 1
    assert rows["test_images"].tolist() == [100, 100]
    assert abs(rows["accuracy_pruned_pct"].diff().iloc[1]) <= 10
    alone, together = (pd.read_csv(tmp_path / "runs" / run / "scores.csv").query("step == 1") for run in rows["run_id"])
    torch.testing.assert_close(
        torch.tensor(together["distance"].to_numpy()), torch.tensor(alone["distance"].to_numpy()), rtol=1e-9, atol=1e-12
    )
    assert together["place_low"].tolist() == alone["place_low"].tolist()


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_resume_finishes_the_run(tmp_path: Path) -> None:
    job = start([f"output_dir={tmp_path}", "finetune.epochs_per_step=20"])
    deadline = time.monotonic() + 120
    while "removed" not in "".join(log.read_text() for log in tmp_path.glob("runs/*/run.log")):
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.5)
    os.kill(process_of_rank(1, job.pid), signal.SIGKILL)
    _, err = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "rank" in err
    (run,) = (tmp_path / "runs").iterdir()
    assert main(["resume", str(run)]) == 0
    assert pd.read_csv(tmp_path / "results.csv")["status"].tolist() == ["done"]


@pytest.mark.slow
def test_a_mistake_is_reported_once_and_ends_all(tmp_path: Path) -> None:
    job = start([f"output_dir={tmp_path}", "model.weights=missing.pt"])
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0
    assert re.findall("^error: .*", err, re.MULTILINE) == ["error: checkpoint missing.pt does not exist"]
    assert "Traceback" not in err.partition("ChildFailedError")[0].partition("E1")[0]


@pytest.mark.slow
def test_a_sweep_in_a_job_goes_on_after_a_run_that_failed_in_all_processes(tmp_path: Path) -> None:
    words = ["-m", "finetune.learning_rate=1e9,0.01", f"output_dir={tmp_path}"]
    job = start(words)
    _, err = job.communicate(timeout=240)
    assert job.returncode != 0
    assert len(re.findall("^error: .*", err, re.MULTILINE)) == 1
    assert sorted(pd.read_csv(tmp_path / "results.csv")["status"]) == ["done", "failed"]


def raising(error: Exception) -> Mock:
    return Mock(side_effect=error)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["run", "--nonsense"], ["score", "model=resnet57"]])
def test_a_mistake_in_the_words_is_reported_once(words: list[str]) -> None:
    job = start_job(*words)
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0
    assert len(re.findall("^error: .*", err, re.MULTILINE)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("words", "line"), [("run --help", "usage: consensus run"), ("list models", "resnet20")])
def test_what_is_only_shown_is_shown_once(words: str, line: str) -> None:
    out, err = start_job(*words.split()).communicate(timeout=120)
    assert len(re.findall(f"^{line}", out, re.MULTILINE)) == 1, out + err


HUNGRY = """
import os
import torch
from consensus_cli.models.resnet import ResNet

class Hungry(ResNet):
    def forward(self, x):
        # The dry run trains on two images and on three.
        if self.training and len(x) > 3 and os.environ["RANK"] in "{ranks}":
            torch.empty(2**58)
        return super().forward(x)

def network():
    return Hungry(3, in_channels=1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["0", "1", "01"])
def test_memory_that_runs_out_in_some_processes_is_one_message(ranks: str, tmp_path: Path) -> None:
    network = tmp_path / "network.py"
    network.write_text(HUNGRY.format(ranks=ranks))
    model = ["model.source=custom", f"model.target={network}:network"]
    job = start([*model, f"output_dir={tmp_path}"])
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0
    (error,) = re.findall("^error: .*", err, re.MULTILINE)
    assert error == "error: out of memory, with no smaller batch to try"
    assert "interrupted by" not in err


def process_of_rank(rank: int, launcher: int) -> int:
    """Returns the process that the launcher started as this rank."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                if parent == str(launcher) and f"RANK={rank}" in (folder / "environ").read_text().split("\0"):
                    return int(folder.name)
            except OSError:
                continue
    raise AssertionError(f"no process of rank {rank}")


def two_shares(rank: int, folder: str) -> None:
    """One of two processes: what it saw goes into `<rank>.json`."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    share = Share(rank, 2)
    order = Path(folder, "order")

    def note() -> None:
        with order.open("a") as file:
            file.write(f"{rank}\n")

    share.agree(note)
    weights = torch.full((2,), float(rank))
    share.synchronize([weights])
    errors, shared = [], []
    for make, combine in ((fail_in_rank_1, list), (int, fail_to_combine)):
        try:
            share.merge(functools.partial(make, rank), combine)
        except (UserError, RunFailedError) as error:
            errors.append(error.message)
            shared.append(error.shared)
    seen = {
        "merged": share.merge(lambda: 10 * rank, list),
        "led": share.lead(lambda: rank),
        "agreed_order": [int(line) for line in order.read_text().split()],
        "weights": weights.tolist(),
        "errors": errors,
        "shared": shared,
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(seen))
    distributed.barrier()
    distributed.destroy_process_group()


def fail_in_rank_1(rank: int) -> int:
    if rank == 1:
        raise UserError("rank 1 misses a file", "copy it there")
    return rank


def fail_to_combine(parts: list[int]) -> int:
    raise RunFailedError("nothing combines", "")
