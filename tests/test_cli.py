"""The command line: help at once, and for every mistake one line, a hint, exit code 2, and no file touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from consensus_cli import __version__
from consensus_cli.cli.catalogue import LISTS
from consensus_cli.cli.commands import COMMANDS
from consensus_cli.cli.main import main
from consensus_cli.evaluation.robustness.attacks import ATTACKS

BAD_INPUT = {
    "unknown command": (["rum"], "unknown command 'rum'", "did you mean 'run'?"),
    "unknown list": (["list", "model"], "unknown list 'model'", "did you mean 'models'?"),
    "unknown model": (["run", "model=resnet57"], "unknown model 'resnet57'", "did you mean 'resnet56'?"),
    "unknown dataset": (["run", "dataset=cifar1"], "unknown dataset 'cifar1'", "did you mean 'cifar10'?"),
    "unknown metric": (["run", "metrics=ckaa"], "unknown metrics 'ckaa'", "did you mean 'cka'?"),
    "unknown metric in a list": (["run", "metrics=[cka,wasser]"], "unknown metrics 'wasser'", "valid:"),
    "unknown criterion": (["run", "criterion=concensus"], "unknown criterion 'concensus'", "did you mean 'consensus'?"),
    "unknown aggregation": (["run", "criterion.aggregation=ranksum"], "'ranksum'", "did you mean 'rank_sum'?"),
    "unknown key": (["run", "ration=0.5"], "unknown config key 'ration'", "did you mean 'ratio'?"),
    "unknown nested key": (["run", "prune.steps=2"], "unknown config key 'prune.steps'", "did you mean 'prune.step'?"),
    "added key": (["run", "+prune.steps=2"], "unknown config key 'prune.steps'", "did you mean 'prune.step'?"),
    "unknown attack": (["run", "attacks.suite.fgsm.name=fgms"], "unknown attack 'fgms'", "did you mean 'fgsm'?"),
    "unknown attack key": (["run", "attacks.suite.fgsm.eps=2"], "unknown config key", "valid here"),
    "attack without name": (
        ["run", "attacks.suite.mine={steps: 3}"],
        "attacks.suite.mine.name is missing",
        "name: pgd",
    ),
    "attack's name": (
        ["run", "attacks.suite.accuracy={name: pgd}"],
        "does not begin with its attack, 'pgd'",
        "pgd_mine",
    ),
    "sweep, only shown": (["run", "-m", "--cfg", "job"], "not allowed with", "consensus run --help"),
    "no folder, only shown": (["run", "--config-dir", "/nowhere", "--cfg", "job"], "nowhere", ""),
    "no attack": (["run", "attacks.suite.mine=5"], "attacks.suite.mine=5 is not an attack", "name: pgd"),
    "steps abc": (
        ["run", "attacks.suite.pgd.steps=abc"],
        "attacks.suite.pgd.steps='abc' is not a whole number",
        "keys: name, norm",
    ),
    "wrong type, only shown": (["run", "seed=one", "--cfg", "job"], "'one'", "--cfg job"),
    "unknown key, only shown": (["run", "ration=0.5", "--cfg", "job"], "unknown config key", "did you mean 'ratio'?"),
    "ratio 0": (["run", "ratio=0"], "ratio=0.0 is out of range", "above 0 and at most 1"),
    "ratio -1": (["run", "ratio=-1"], "ratio=-1.0 is out of range", "above 0 and at most 1"),
    "ratio 1.5": (["run", "ratio=1.5"], "ratio=1.5 is out of range", "above 0 and at most 1"),
    "ratio abc": (["run", "ratio=abc"], "'abc'", "--cfg job"),
    "ratio empty": (["run", "ratio="], "ratio=", "--cfg job"),
    "falling ratios": (["run", "ratio=[0.5,0.25]"], "ratio=[0.5, 0.25] is out of range", "increasing order"),
    "no ratios": (["run", "ratio=[]"], "ratio=[]", "[0.25,0.5] in brackets"),
    "one ratio of several too small": (["run", "ratio=[0.01,0.5]"], "removes none", "use at least"),
    "unknown if_done": (["run", "if_done=skipp"], "unknown if_done 'skipp'", "did you mean 'skip'?"),
    "ratio too small": (["run", "ratio=0.01"], "removes none", "use at least"),
    "too many blocks": (["run", "ratio=1", "prune.min_blocks_per_stage=3"], "asks for 24 of 24", "lower the ratio"),
    "too many MACs": (["run", "prune=macs", "ratio=0.99"], "at most 90.", "lower the ratio"),
    "wrong type": (["run", "seed=one"], "'one'", "--cfg job"),
    "fractional seed": (["run", "seed=1.5"], "seed=1.5 is not a whole number", "--cfg job"),
    "not a setting": (["run", "resnet56"], "cannot read 'resnet56'", "key=value"),
    "deleted setting": (["run", "~seed"], "take no +, ~ or @", "seed="),
    "sweep without -m": (["run", "ratio=0.25,0.5"], "several values", "consensus run -m"),
    "two models": (["run", "model=[resnet20,resnet56]"], "unknown model '[resnet20,resnet56]'", "valid:"),
    "missing model name": (["run", "model=torchvision"], "model.name is missing", "model.name="),
    "unknown torchvision model": (["run", "model=torchvision", "model.name=resnet51"], "'resnet51'", "did you mean"),
    "unknown published weights": (["run", "model=resnet50", "model.weights=IMAGENET1K"], "'IMAGENET1K'", "valid:"),
    "no such class": (
        ["run", "model=custom", "model.target=nowhere.Net"],
        "cannot be imported",
        "path/to/file.py:Class",
    ),
    "not a class": (["run", "model=custom", "model.target=math.sqrt"], "Python's own and makes no", "module.Class"),
    "no residual blocks": (
        ["run", "model=torchvision", "model.name=vgg11", "dataset.image_size=32"],
        "no residual blocks",
        "ResNet",
    ),
    "missing checkpoint": (["run", "model.weights=nowhere.safetensors"], "does not exist", "spelled right"),
    "truncated checkpoint": (["run", "model.weights={tmp}/cut.safetensors"], "cannot be read", "copy it again"),
    "empty checkpoint": (["run", "model.weights={tmp}/empty.pt"], "cannot be read", "to its end"),
    "mismatching checkpoint": (["run", "model.weights={tmp}/other.safetensors"], "does not fit", "choose the model"),
    "missing dataset": (["run", "dataset=cifar10", "dataset.root={tmp}/none"], "cifar10", "dataset.download=true"),
    "missing image folder": (["run", "dataset=imagefolder", "dataset.root={tmp}/none"], "none", "ROOT/train/CLASS"),
    "no root": (["run", "dataset=imagefolder"], "needs a folder", "dataset.root"),
    "output is a file": (["run", "output_dir={tmp}/other.safetensors"], "other.safetensors", "output_dir"),
    "foreign results file": (["run", "output_dir={tmp}/foreign"], "results.csv", "output_dir"),
    "no such GPU": (["run", "device=cuda:99"], "device=cuda:99 is not there", "device=cpu"),
    "unknown device": (["run", "device=gpu"], "unknown device 'gpu'", "valid:"),
    "unknown country": (["run", "evaluate.country=BRAA"], "unknown country 'BRAA'", "ISO 3166"),
    "missing shift set": (
        ["run", "evaluate.shift.new={tmp}/none"],
        "evaluate.shift.new: there is nothing",
        "CIFAR-10.1",
    ),
    "shift set of other images": (["run", "evaluate.shift.new={tmp}/new.npz"], "holds images of 3×8×8", "belongs to"),
    "shift set without a name": (["run", "evaluate.shift={New Set: x}"], "'New Set' in evaluate.shift", "cifar10c"),
    "too few samples for a metric": (["run", "metrics.samples_per_class=5"], "linear_alpha0", "samples"),
    "more samples than images": (["run", "metrics.samples_per_class=500"], "500", "metrics.samples_per_class=12"),
    "second run of a sweep": (["run", "-m", "ratio=0.25,1.5"], "ratio=1.5", "at most 1"),
}


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    whole = (tmp_path / "other.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:30])
    (tmp_path / "empty.pt").touch()
    np.savez(tmp_path / "new.npz", images=np.zeros((3, 8, 8, 3), np.uint8), labels=np.arange(3))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "results.csv").write_text("name,phone\nAda,123\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_a_hint_and_exit_code_2(
    case: str, working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message, hint = BAD_INPUT[case]
    before = contents(working_folder)
    assert main([word.replace("{tmp}", str(working_folder)) for word in words]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2, told
    assert told[0].startswith("error: ")
    assert message in told[0]
    assert told[1].startswith("hint: ")
    assert hint in told[1]
    assert contents(working_folder) == before


def test_every_mistake_is_told_at_once(working_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "ratio=2", "device=cuda:99", "model.weights=nowhere.pt", "evaluate.country=XYZ"]) == 2
    told = capsys.readouterr().err
    assert told.count("error: ") == told.count("hint: ") == 4


@pytest.mark.parametrize("what", LISTS)
def test_lists_name_and_describe(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"consensus {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_commands_help_shows_its_options_and_two_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: consensus {name} ")
    assert shown.count(f"\n  consensus {name} ") >= 2
    for argument in COMMANDS[name].parser()._actions:
        assert all(option in shown for option in argument.option_strings)
        assert argument.help
    assert main(["--help"]) == 0
    assert f"\n    {name} " in capsys.readouterr().out


def test_list_alone_names_every_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*LISTS, "blocks"]


def test_attacks_are_listed_beside_suites(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "attacks"]) == 0
    assert {*ATTACKS, "full", "none"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines()}


def test_help_imports_neither_torch_nor_hydra() -> None:
    code = (
        "import sys; from consensus_cli.cli.main import main; main(['--help']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'hydra', 'numpy', 'rich')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "consensus run model=resnet56 ratio=0.5" in done.stdout


def test_hydras_own_flags_work_behind_run(working_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "consensus_cli", "run", "ratio=0.25", "--cfg", "job"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert "ratio: 0.25" in done.stdout
    assert not (working_folder / "outputs").exists()
