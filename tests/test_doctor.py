"""`consensus doctor`: a sound machine passes, and what is wrong with another one is the right line."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.second_gpu import SECOND, SecondGPU

from consensus_cli.cli.main import main
from consensus_cli.config.composition import compose_run
from consensus_cli.experiment import device_trial, doctor
from consensus_cli.experiment.doctor import Line, examine, facts
from consensus_cli.experiment.threads import ThreadWatch

CPU = torch.device("cpu")
REPORT = "this should not happen: report it with this table"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the work on devices."""
    monkeypatch.setattr(device_trial.Work, "checks", lambda _: iter(()))


def line(check: str, device: str = "", **folder: Path) -> Line:
    words = [f"output_dir={path}" for path in folder.values()]
    return next(line for line in examine(words) if (line.check, line.device) == (check, device))


def test_a_machine_without_onnx_and_a_file_in_place_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["doctor", "--json", f"output_dir={tmp_path}"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    lines = {(each["check"], each["device"]): each for each in found["checks"]}
    broken, onnx = lines.pop(("cache folder", "")), lines.pop(("export, onnx", "cpu"))
    assert (broken["result"], broken["found"]) == ("fail", f"'{tmp_path}/cache' is a file, not a folder")
    assert (onnx["result"], onnx["found"]) == ("skip", "ONNX needs a package that is not installed: onnxruntime")
    assert onnx["hint"] == "install the extra: pip install 'consensus-cli[onnx]'"
    assert {name for (name, _), each in lines.items() if each["result"] == "skip"} <= {
        "energy counter", "several processes",
    }  # fmt: skip
    assert all(each["result"] != "fail" for each in lines.values())
    on_cpu = [name for name, device in lines if device == "cpu"]
    assert on_cpu == [
        "score in fp32", "score in bf16", "train in fp32", "train in bf16", "remove blocks", "attack",
        "measure energy", "run, stop, resume", "load_pruned", "export, safetensors", "export, torch-export",
    ]  # fmt: skip
    # What was tried left nothing behind.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


@pytest.mark.usefixtures("quick")
def test_the_table_says_what_json_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["doctor", f"output_dir={tmp_path / 'new'}"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    table = capsys.readouterr().out
    for name, text in found["facts"].items():
        assert f"{name:<10} {text}\n" in table
    for each in found["checks"]:
        assert f"{each['result']}  {each['device']:<6}  {each['check']:<20}  {each['found']}\n" in table
        assert not each["hint"] or f"hint: {each['hint']}\n" in table
    assert table.endswith(f"\nnone of {len(found['checks'])} checks failed\n")
    assert not (tmp_path / "new").exists()


def test_facts_name_what_answers_depend_on() -> None:
    found = facts()
    assert f"torch {torch.__version__}" in found["packages"]
    assert all(name in found["packages"] for name in ("numpy", "pandas", "codecarbon", "torchattacks"))
    assert all(found.values())


def test_extras_are_named_as_installed_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["torch>=2", "torch>=1; extra == 'here'", 'nowhere==1 ; extra == "gone"', "torch; extra == 'test'"]
    needs += ["torch; extra == 'half'", "nowhere[all]<2; python_version > '3' and extra == 'half'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: needs)
    assert facts()["extras"] == "here; not installed: gone half"
    monkeypatch.setattr("importlib.metadata.requires", mock.Mock(side_effect=importlib.metadata.PackageNotFoundError))
    assert facts()["extras"] == "not known: consensus is not installed, but run from its folder"


def test_a_fact_that_cannot_be_found_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", mock.Mock(side_effect=RuntimeError("no driver")))
    assert facts()["GPUs"] == "RuntimeError: no driver"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("there", "readable", "words"),
    [
        (True, True, "codecarbon does not read what is there"),
        (True, False, "may not be read"),
        (False, False, "is not there"),
    ],
)
def test_a_missing_energy_counter_is_no_failure(
    there: bool, readable: bool, words: str, *, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consensus_cli.evaluation.cost.energy._COUNTERS", ())
    monkeypatch.setattr(doctor, "_RAPL", tmp_path / "energy_uj")
    # The superuser may read everything.
    monkeypatch.setattr("os.access", lambda *_: readable)
    if there:
        (tmp_path / "energy_uj").write_text("1")
    found = line("energy counter")
    assert found.result == "skip"
    assert words in found.found
    assert "estimates energy from CPU time" in found.found


@pytest.mark.usefixtures("quick")
def test_threads_follow_what_others_leave_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()

    def look(watch: ThreadWatch) -> None:
        torch.set_num_threads(before + 1)
        watch._warn("others are busy")

    monkeypatch.setattr(ThreadWatch, "look", look)
    examined = examine([])
    assert next(examined) == Line("threads", "", "pass", "others are busy")
    assert torch.get_num_threads() == before + 1
    assert [each.check for each in examined][-1] == "several processes"
    assert torch.get_num_threads() == before


@pytest.mark.usefixtures("quick")
def test_an_energy_counter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consensus_cli.evaluation.cost.energy._COUNTERS", ("",))
    found = line("energy counter")
    assert (found.result, "CPU energy counter" in found.found) == ("pass", True)


@pytest.mark.parametrize(
    ("broken", "raised", "check", "words", "hint"),
    [
        ("rank_blocks", ValueError("two\nlines"), "score in fp32", "ValueError: two lines", REPORT),
        ("remove_blocks", AssertionError("a bug"), "remove blocks", "AssertionError: a bug", REPORT),
        (
            "attack_accuracy",
            torch.OutOfMemoryError("no memory"),
            "attack",
            "OutOfMemoryError: no memory",
            "free its memory, which other programs hold",
        ),
        (
            "pipeline.run",
            OSError(28, "No space left on device"),
            "run, stop, resume",
            "No space left",
            "is the disk full, or the folder not yours?",
        ),
    ],
)
def test_a_check_that_breaks_is_one_line_and_the_others_go_on(
    broken: str, raised: Exception, check: str, words: str, hint: str, *, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"consensus_cli.experiment.device_trial.{broken}", mock.Mock(side_effect=raised))
    work = device_trial.Work(compose_run(device_trial.TINY), CPU)
    names = {check, "attack", "load_pruned"}
    lines = {name: doctor._line(name, "cpu", run) for name, run in work.checks() if name in names}
    assert lines[check].result == "fail"
    assert words in lines[check].found
    assert "\n" not in lines[check].found
    assert lines[check].hint == hint
    assert lines["load_pruned"] == Line("load_pruned", "cpu", "skip", "needs the run above")
    assert check == "attack" or lines["attack"].result == "pass"


def test_what_is_further_off_than_it_may_be_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    work = device_trial.Work(compose_run(device_trial.TINY), CPU)
    monkeypatch.setattr(work, "_scored", lambda precision: {"cka": torch.tensor([1.0, 2.0]).numpy()})
    assert work.score("fp32") == "1 metrics, at worst cka: 0 % off the CPU's in fp32, 0.2 % allowed"
    monkeypatch.setattr(work, "_scored", lambda precision: {"cka": torch.tensor([1.0, 2.01]).numpy()})
    off = doctor._line("score", "cpu", lambda: work.score("fp32"))
    assert (off.result, off.found) == ("fail", "1 metrics, at worst cka: 0.5 % off the CPU's in fp32, 0.2 % allowed")
    assert doctor._line("score", "cpu", lambda: work.score("bf16")).result == "pass"
    some = {"a": np.ones(2), "b": np.ones(2)}
    work.distances = some
    monkeypatch.setattr(work, "_scored", lambda precision: some | {"b": np.array([1.0, np.nan])})
    assert doctor._line("score", "cpu", lambda: work.score("bf16")).result == "fail"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ratio=0.5"], "takes output_dir and device, not 'ratio=0.5'"),
        (["nonsense"], "takes output_dir and device, not 'nonsense'"),
        (["device=cuda:99"], "device=cuda:99 is not there"),
        (["device=mps"], "unknown device 'mps'"),
        (["output_dir="], "output_dir is empty"),
    ],
)
def test_a_mistake_in_the_settings_is_one_line_before_anything_else(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err


def test_a_job_of_several_processes_is_told_to_run_it_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["doctor"]) == 2
    assert "run it without torchrun" in capsys.readouterr().err


def test_a_package_that_does_not_load_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "consensus_cli.experiment.doctor")
    monkeypatch.delattr("consensus_cli.experiment.doctor")
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert main(["doctor"]) == 1
    assert "a package does not load: ModuleNotFoundError" in capsys.readouterr().err


def test_a_gpu_is_examined_like_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_trial, "TINY", (*device_trial.TINY, "threads=1"))
    with SecondGPU().active():
        config = compose_run(device_trial.TINY)
        work = device_trial.Work(config, SECOND, device_trial.Work(config, CPU))
        # The compiler knows real GPUs alone.
        lines = [doctor._line(name, "cuda:1", run) for name, run in work.checks() if name != "train, compiled"]
    assert {each.check: each.result for each in lines} == {
        "score in fp32": "pass", "score in bf16": "pass", "train in fp32": "pass", "train in bf16": "pass",
        "remove blocks": "pass", "attack": "pass", "measure energy": "skip", "run, stop, resume": "pass",
        "load_pruned": "pass",
    }  # fmt: skip


@pytest.mark.slow
def test_several_processes_make_a_run_together() -> None:
    assert device_trial.torchrun(2, "cpu") == "2 processes made one run"
    broken = doctor._line("several processes", "", lambda: device_trial.torchrun(2, "cuda:99"))
    assert (broken.result, "device=cuda:99 is not there" in broken.found) == ("fail", True)
