"""Several processes do what one does: the same scores and blocks, one row; and none of them waits for a dead one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from consensus_cli.experiment.parallel.team import Message, Team, _classes, _packed, _unpacked, team
from helpers.quick import QUICK

from consensus_cli.cli.main import main
from consensus_cli.errors import UserError
from consensus_cli.evaluation.accuracy import Predictions

REPOSITORY = Path(__file__).parents[1]
SHORT = (*QUICK, "baseline.epochs=4", "baseline.learning_rate=0.05", "precision=fp32", "attacks=none", "ratio=0.34")


def start(words: list[str], processes: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "consensus_cli", "run", *SHORT, *words]
    return subprocess.Popen(
        command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


@pytest.fixture(autouse=True)
def _one_team_per_test() -> Iterator[None]:
    team.cache_clear()
    yield
    team.cache_clear()


def test_a_message_arrives_as_it_was_sent() -> None:
    message = Message("train", {"seed": 3, "removed": ["layer1.1"]}, (b"weights", b"", b"\0\1"))
    assert _unpacked(_packed(message)) == message


def test_alone_everything_is_its_own_part_and_nobody_is_asked() -> None:
    alone = team()
    assert (alone.rank, alone.world, alone.leads) == (0, 1, True)
    with alone.together(lambda: pytest.fail("a message was made")):
        assert alone.gather(lambda: 7, torch.device("cpu")) == [7]


def test_what_may_be_received_is_what_is_held_and_no_tensor_subclass_machinery() -> None:
    assert _classes([Predictions(torch.zeros(1, 2), torch.zeros(1))]) == {list, Predictions}


def test_after_a_step_that_broke_off_nothing_more_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    leader = Team(0, 2)
    monkeypatch.setattr(Team, "_broadcast", lambda self, data: b"")
    with pytest.raises(KeyError), leader.together(lambda: Message("train")):
        raise KeyError
    with pytest.raises(RuntimeError, match="broke off"), leader.together(lambda: Message("train")):
        pass


def test_an_error_that_all_share_does_not_break_the_team(monkeypatch: pytest.MonkeyPatch) -> None:
    leader = Team(0, 2)
    sent: list[bytes | None] = []
    monkeypatch.setattr(Team, "_broadcast", lambda self, data: sent.append(data))
    with pytest.raises(UserError), leader.together(lambda: Message("score")):
        raise UserError("not finite", "")
    with leader.together(lambda: Message("score")):
        pass
    assert len(sent) == 2


def test_sharded_models_are_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main(["run", *SHORT]) == 2
    assert "FSDP is not supported" in capsys.readouterr().err


def test_a_batch_too_small_for_the_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from consensus_cli.config.composition import compose_run
    from consensus_cli.experiment import checks

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
from consensus_cli.experiment.parallel.team import team

members = team()
generator = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (64, 1, 4, 4), generator=generator).to(torch.uint8)
split = ImageTensors(images, torch.arange(64) % 3)
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
recipe = training.Recipe(epochs=3, learning_rate=0.1, schedule="cosine", milestones=(), momentum=0.9,
                         weight_decay=1e-3, batch_size=16, accumulate_batches=1, label_smoothing=0.0)
training.train(model, split, recipe, device=torch.device("cpu"), augmentation=Augmentation(), seed=1, precision="fp32",
               share=members.share)
if members.leads:
    torch.save(model.state_dict(), sys.argv[1])
if members.world > 1:
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
def test_a_killed_process_ends_the_job_with_an_error(tmp_path: Path) -> None:
    job = start([f"output_dir={tmp_path}", "finetune.epochs_per_step=200"])
    deadline = time.monotonic() + 120
    while "removed" not in "".join(log.read_text() for log in tmp_path.glob("runs/*/run.log")):
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.5)
    os.kill(process_of_rank(1, job.pid), signal.SIGKILL)
    _, err = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "rank" in err


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
