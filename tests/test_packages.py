"""The library needs six packages; where another is missing, one line says how to install it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from consensus_cli.data import Request, digits
from consensus_cli.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
OTHERS = (
    "torchvision accelerate hydra omegaconf codecarbon torchattacks sklearn filelock rich matplotlib jinja2 markupsafe "
    "psutil joblib vl_convert timm transformers datasets onnx mlflow wandb tensorboard"
)


def without(blocked: list[str], script: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a Python where importing some packages fails."""
    words = [sys.executable, "-c", f"import sys\nsys.modules |= dict.fromkeys({blocked!r})\n{script}"]
    return subprocess.run(words, capture_output=True, text=True, check=False)


# What each of these needs is imported when it is used: the library's parts, and what commands read, draw or serve.
LIBRARY = """
import torch
import consensus_cli as cc
from consensus_cli.models.resnet import resnet
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
loader = DataLoader(TensorDataset(torch.rand(100, 3, 16, 16), torch.arange(100) % 4), batch_size=50)
model = resnet(20, num_classes=4)
ranking = cc.rank_blocks(model, loader)
cc.remove_blocks(model, [ranking.least_important])
print(len(cc.find_blocks(model, torch.rand(2, 3, 16, 16))))
print(sum(1 for _ in cc.prune(model, loader, ratio=0.5)))
assert cc.load_pruned and cc.Recipe and cc.Attack and cc.register_metric and cc.register_criterion
"""


def test_the_library_scores_and_removes_with_six_packages() -> None:
    done = without(OTHERS.split(), LIBRARY)
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n3\n", "")


@pytest.mark.parametrize(
    ("package", "extra", "words"),
    [
        ("vl_convert", "[report]", "main(['report', 'outputs'])"),
        ("hydra", "", "main(['run', 'model=resnet20'])"),
        ("torchattacks", "", "main(['run', 'experiment=smoke', 'output_dir=OUT'])"),
        ("codecarbon", "", "main(['run', 'experiment=smoke', 'output_dir=OUT'])"),
        ("accelerate", "", "main(['run', 'experiment=smoke', 'output_dir=OUT'])"),
        ("matplotlib", "", "main(['run', 'experiment=smoke', 'output_dir=OUT'])"),
        ("torchvision", "", "main(['list', 'blocks', 'model=resnet18'])"),
        ("rich", "", "main(['list', 'blocks', 'model=resnet20'])"),
    ],
)
def test_a_command_names_what_installs_the_package_that_it_lacks(
    package: str, extra: str, words: str, tmp_path: Path
) -> None:
    script = f"from consensus_cli.cli.main import main\nsys.exit({words.replace('OUT', str(tmp_path / 'out'))})"
    done = without([package], script)
    told = f"error: {package} is not installed\nhint: pip install 'consensus-cli{extra}'\n"
    assert (done.returncode, done.stderr) == (2, told)
    # Nothing expensive came first: no run has begun.
    assert not list(tmp_path.rglob("row.json"))


def test_so_do_the_images_of_a_package_that_is_read_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(digits, "distribution", missing)
    with pytest.raises(UserError, match="scikit-learn is not installed"):
        digits.Digits().read(Request(source="digits"), tmp_path)


def test_what_scripts_install_is_within_the_ranges_that_pip_installs() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [Requirement(line) for lines in project["optional-dependencies"].values() for line in lines]
    for need in [*needs, *map(Requirement, project["dependencies"])]:
        # The extra `test` holds the others.
        assert need.name == project["name"] or need.specifier.contains(pinned[canonicalize_name(need.name)])


@pytest.mark.parametrize("release", ["3.4.0", "3.5.0", "3.5.1"])
def test_releases_of_torchattacks_that_ask_for_an_old_requests_are_not_installed(release: str) -> None:
    """With plain pip they would put a version of 2020 in the place of the user's."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (need,) = (Requirement(line) for line in lines if line.startswith("torchattacks"))
    assert not need.specifier.contains(release)
