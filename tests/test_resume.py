"""A run that stops goes on where it stopped, a finished one is not repeated, and several ratios share one run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from filelock import FileLock
from helpers.quick import QUICK
from helpers.stopping import after_finetuning, in_phase, signal_when_written, stop_run
from safetensors.torch import load_file

import consensus_cli
from consensus_cli.cli.main import main
from consensus_cli.errors import UserError
from consensus_cli.experiment.session import reopen
from consensus_cli.storage.results import read_rows
from consensus_cli.storage.rundir import RunDir
from consensus_cli.storage.state import read_state

ROOT = Path(__file__).parents[1]

WORDS = (*QUICK, "attacks=none", "metrics=[cka,wasserstein]", "evaluate.energy_window_s=0.05")


def run(output_dir: Path, *words: str) -> int:
    return main(["run", *WORDS, *words, f"output_dir={output_dir}"])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that SIGTERM stopped after the first of its two removals was saved."""
    folder = tmp_path_factory.mktemp("stopped")
    words = (*WORDS, "ratio=0.34")
    assert stop_run(folder, *words, when=after_finetuning(2), number=signal.SIGTERM) == signal.SIGTERM
    return folder


@pytest.fixture
def stopped_run(stopped: Path) -> Path:
    return next((stopped / "runs").iterdir())


def test_a_stopped_run_says_so_and_how_to_go_on(stopped: Path, stopped_run: Path) -> None:
    row = read_rows(stopped / "results.csv").iloc[0]
    assert (row["status"], row["error"]) == ("interrupted", "InterruptedRunError: SIGTERM")
    assert RunDir(stopped_run).state.is_file()
    assert len(pd.read_csv(stopped_run / "scores.csv")["step"].unique()) == 1


def test_two_processes_do_not_work_on_one_run(stopped_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(RunDir(stopped_run).lock):
        assert main(["resume", str(stopped_run)]) == 2
    assert "is in use by another process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("identity.json", "{}", "does not say which run this is"),
        ("identity.json", None, "does not say which run this is"),
        ("config.yaml", "seed: 1\n", "is missing"),
        ("checkpoints/state.safetensors", "torn", "is not the state of a run"),
        ("checkpoints/baseline.safetensors", "torn", "cannot be read"),
    ],
)
def test_a_damaged_run_directory_cannot_be_resumed(
    file: str,
    content: str | None,
    message: str,
    *,
    stopped_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = tmp_path / "runs" / stopped_run.name
    shutil.copytree(stopped_run, copy)
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_text(content)
    assert main(["resume", str(copy)]) == 2
    assert message in capsys.readouterr().err


def test_a_changed_configuration_is_not_continued(stopped_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs" / "run"
    copy.mkdir(parents=True)
    (copy / "identity.json").write_bytes((stopped_run / "identity.json").read_bytes())
    config = (stopped_run / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config)
    assert reopen(copy)[0].output_dir == str(tmp_path)
    (copy / "config.yaml").write_text(config.replace("seed: 0", "seed: 1"))
    with pytest.raises(UserError, match="not what the run began with"):
        reopen(copy)
    with pytest.raises(UserError, match="does not lie in a folder 'runs'"):
        reopen(copy.rename(tmp_path / "run"))


def test_lost_scores_are_noticed_and_cost_no_run(
    stopped_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "runs" / stopped_run.name
    shutil.copytree(stopped_run, copy)
    (copy / "scores.csv").unlink()
    assert main(["resume", str(copy)]) == 0
    assert "the earlier scores are lost" in capsys.readouterr().out
    assert pd.read_csv(copy / "scores.csv")["step"].unique().tolist() == [2]


def test_a_resumed_run_a_single_run_and_a_list_of_ratios_agree(
    stopped: Path,
    stopped_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved_s = read_state(RunDir(stopped_run).state, None)[0].duration_s
    (stopped_run / "row.json").unlink()
    with signal_when_written(stopped_run / "row.json", signal.SIGTERM):
        assert main(["resume", str(stopped_run)]) == 128 + signal.SIGTERM
    assert "resumed: 1 block is gone" in capsys.readouterr().out
    assert not RunDir(stopped_run).state.exists()
    assert RunDir(stopped_run).summary.is_file()
    assert main(["resume", str(stopped_run)]) == 0
    assert "is done already" in capsys.readouterr().out
    resumed = read_rows(stopped / "results.csv")
    assert list(resumed["status"]) == ["done"]
    assert resumed["duration_s"][0] > saved_s + resumed["evaluate_s"][0]

    assert run(tmp_path, "ratio=[0.34,0.5]") == 0
    both = read_rows(tmp_path / "results.csv")
    assert list(both["ratio"]) == [0.34, 0.5]
    assert list(both["blocks_removed"]) == [2, 3]
    assert both["score_s"][1] > both["score_s"][0]
    for column in ("removed_blocks", "accuracy_base_pct", "accuracy_pruned_pct", "macs_pruned"):
        assert both[column][0] == resumed[column][0]
    smaller, larger = (Path(folder) for folder in both["run_dir"])
    assert (smaller / "scores.csv").read_bytes() == (stopped_run / "scores.csv").read_bytes()
    tuned, expected = (load_file(RunDir(folder).pruned_checkpoint) for folder in (smaller, stopped_run))
    assert all(torch.equal(tuned[key], expected[key]) for key in expected)
    for folder, line in zip((smaller, larger), both.itertuples(), strict=True):
        model = consensus_cli.load_pruned(folder)
        assert sum(p.numel() for p in model.network.parameters()) == line.params_pruned
        assert json.loads((folder / "row.json").read_text())["run_id"] == folder.name

    capsys.readouterr()
    assert run(tmp_path, "ratio=[0.34,0.5]", "if_done=skip") == 0
    assert run(tmp_path, "-m", "ratio=0.34,[0.34,0.5]") == 0
    shown = capsys.readouterr().out
    assert shown.count("is done already") == 3
    assert "baseline" not in shown
    assert len(read_rows(tmp_path / "results.csv")) == 2


@pytest.mark.parametrize(
    ("criterion", "ratios", "smaller"),
    [
        # What is spread evenly depends on how much goes in the end, also of the first ratio.
        (["criterion=uniform"], "[0.17,0.34,0.5]", ["0.17", "0.34"]),
        # The best set for a ratio need not hold the best one for a smaller ratio.
        (["criterion=random", "prune=macs", "criterion.per=macs"], "[0.1,0.2,0.3]", ["0.2"]),
    ],
)
def test_rows_of_a_list_of_ratios_that_a_run_of_its_own_would_not_have_do_not_count_as_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], criterion: list[str], ratios: str, smaller: list[str]
) -> None:
    words = (*criterion, "finetune=none", "baseline.epochs=0.02", "if_done=skip")
    assert run(tmp_path, *words, f"ratio={ratios}") == 0
    assert run(tmp_path, *words, f"ratio={ratios}") == 0
    assert capsys.readouterr().out.count("is done already") == 1
    for ratio in smaller:
        assert run(tmp_path, *words, f"ratio={ratio}") == 0
    assert "is done already" not in capsys.readouterr().out
    assert len(read_rows(tmp_path / "results.csv")) == 3 + len(smaller)


def test_a_row_that_a_kill_kept_from_the_results_is_added_by_skipping(
    outputs: Path, finished_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(outputs / "runs", tmp_path / "runs")
    state = RunDir(tmp_path / "runs" / finished_run.name).state
    state.touch()
    assert main(["run", *QUICK, "ratio=0.5", "if_done=skip", f"output_dir={tmp_path}"]) == 0
    assert len(read_rows(tmp_path / "results.csv")) == 1


@pytest.mark.slow
def test_a_sweep_goes_on_with_the_run_that_was_stopped(tmp_path: Path) -> None:
    assert run(tmp_path, "ratio=0.17", "seed=0") == 0
    words = (*WORDS, "ratio=0.5", "seed=0")
    assert stop_run(tmp_path, *words, when=after_finetuning(3), number=signal.SIGINT) == signal.SIGINT
    assert sorted(read_rows(tmp_path / "results.csv")["status"]) == ["done", "interrupted"]
    assert run(tmp_path, "-m", "ratio=0.17,0.5", "seed=0") == 0
    rows = read_rows(tmp_path / "results.csv")
    assert list(rows["status"]) == ["done", "done"]
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.slow
def test_a_stop_during_the_evaluation_of_the_first_ratio_repeats_no_training(tmp_path: Path) -> None:
    words = (*WORDS, "ratio=[0.17,0.34]", "finetune.epochs_per_step=0")
    assert stop_run(tmp_path, *words, when=in_phase("evaluate"), number=signal.SIGTERM) == signal.SIGTERM
    folder = next(path for path in (tmp_path / "runs").iterdir() if RunDir(path).state.exists())
    assert main(["resume", str(folder)]) == 0
    assert len(read_rows(tmp_path / "results.csv")) == 2
    assert (folder / "run.log").read_text().count("final fine-tuning: loss") == 2


@pytest.mark.slow
def test_a_lost_row_of_a_smaller_ratio_is_not_made_of_the_network_of_a_larger_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*WORDS, "ratio=[0.17,0.5]")
    assert stop_run(tmp_path, *words, when=after_finetuning(3), number=signal.SIGTERM) == signal.SIGTERM
    folder, beside = sorted((tmp_path / "runs").iterdir(), key=lambda path: "-of-" in path.name)
    shutil.rmtree(beside)
    assert main(["resume", str(folder)]) == 2
    assert "the row at ratio 0.17 is gone, and so are more blocks than it asks for" in capsys.readouterr().err


HUNGRY = """
import torch
from consensus_cli.models.resnet import ResNet

class Hungry(ResNet):
    def forward(self, x):
        if len(x) > (16 if self.training else 64):
            torch.empty(2**58)
        return super().forward(x)

def network():
    return Hungry(3, in_channels=1)
"""


@pytest.mark.slow
def test_memory_that_runs_out_halves_the_batches_for_the_rest_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = tmp_path / "network.py"
    network.write_text(HUNGRY)
    model = ["model.source=custom", f"model.target={network}:network"]
    few = ["dataset.limit_test=50", "evaluate.batch_sizes=[1]", "metrics.samples_per_class=10"]
    assert run(tmp_path, "ratio=0.34", *model, *few) == 0
    shown = capsys.readouterr().out
    assert shown.count("out of memory: training goes on with batches of 16 images") == 1
    assert shown.count("out of memory: scoring goes on with batches of 64 images") == 1
    row = read_rows(tmp_path / "results.csv").iloc[0]
    assert (row["finetune_batch_size"], row["scoring_batch_size"]) == (16, 64)


FULL_DISK = """
import resource, sys
from pathlib import Path
from consensus_cli.errors import RunFailedError, tell
from consensus_cli.config.composition import compose_run
from consensus_cli.experiment import pipeline
from helpers.stopping import ActingScreen, after_finetuning, in_phase

phase, *words = sys.argv[1:]
when = after_finetuning(1) if phase == "finetune" else in_phase(phase)
full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
config = compose_run(words)
config.if_done = "rerun"
try:
    pipeline.run(config, words, ActingScreen(when, full))
except RunFailedError as error:
    tell(error)
    sys.exit(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["baseline", "finetune", "evaluate"])
def test_a_full_disk_leaves_earlier_files_whole_and_the_run_resumable(phase: str, tmp_path: Path) -> None:
    assert run(tmp_path, "ratio=0.17", "criterion=first") == 0
    earlier = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    words = [*WORDS, "ratio=0.34", "baseline.epochs=3", f"output_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, phase, *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    error, hint = done.stderr.splitlines()[-2:]
    assert error == "error: cannot write any more: File too large"
    assert hint.startswith("hint: make room, then continue with: consensus resume ")
    assert {file: file.read_bytes() for file in earlier} == earlier
    assert not list(tmp_path.rglob("*.part"))
    assert main(["resume", hint.split()[-1]]) == 0
    assert list(read_rows(tmp_path / "results.csv")["status"]) == ["done", "done"]


@pytest.mark.slow
def test_killed_runs_end_as_if_nothing_had_happened() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "chaos_run.py"), "--kills", "3", "metrics=cka"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills, 0 faults" in done.stdout
