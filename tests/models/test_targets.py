"""What `model.target` can name, and what is said where it names nothing that makes a network."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from consensus_cli.errors import UserError
from consensus_cli.models import zoo
from consensus_cli.models.spec import ModelSpec
from consensus_cli.models.targets import find_target

SPEC = ModelSpec("custom", "custom", num_classes=10, mean=[0.5], std=[0.5])

NETS = '''
"""Networks of a user's."""
import sys
from torch import nn
from nets_parts import Part

class Net(nn.Sequential):
    def __init__(self, width=4, depth=2):
        if depth != 2:
            raise ValueError(f"depth must be 2, not {depth}")
        super().__init__(Part(3, width), nn.Linear(width, 10))

class Needy(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.rates = [0.1][num_classes]

    class Inner(nn.Module):
        pass

def factory(width=4):
    return Net(width)

def exits():
    sys.exit(3)

def pair():
    return Net(), None

class Family:
    @classmethod
    def small(cls):
        return Net(2)

network = Net()
SIZES = {"small": Net}
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a user who started the console script: it is not on `sys.path`."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "nets_parts.py").write_text("from torch import nn\nclass Part(nn.Linear):\n    pass\n")
    package = tmp_path / "lab" / "zoo"
    package.mkdir(parents=True)
    (tmp_path / "lab" / "__init__.py").touch()
    (package / "small.py").write_text("from nets import Net\nclass Small(Net):\n    pass\n")
    (tmp_path / "needs.py").write_text("import torch\nimport package_that_nobody_has\n")
    (tmp_path / "breaks.py").write_text("import torch\nrates = {}['first']\n")
    (tmp_path / "syntax.py").write_text("def broken(:\n")
    (tmp_path / "script.py").write_text("import argparse\nargparse.ArgumentParser().parse_args(['--no'])\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])  # noqa: PTH109
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


def _build(target: str, **kwargs: object) -> nn.Module:
    return zoo.build(replace(SPEC, target=target, kwargs=kwargs), 3).network


@pytest.mark.parametrize(
    ("target", "width"),
    [
        ("nets.Net", 4),
        ("nets:Net", 4),
        ("nets.factory", 4),
        ("nets.Family.small", 2),
        ("lab.zoo.small.Small", 4),
        ("nets.py:Net", 4),
        ("./nets.py:factory", 4),
        ("lab/../nets.py:Family.small", 2),
    ],
)
def test_a_class_or_function_is_found_in_the_working_folder(folder: Path, target: str, width: int) -> None:
    network = _build(target)
    assert [type(child).__name__ for child in network.children()] == ["Part", "Linear"]
    assert network[0].out_features == width  # type: ignore[index]


def test_arguments_reach_a_function(folder: Path) -> None:
    assert _build("nets.factory", width=7)[0].out_features == 7  # type: ignore[index]


def test_a_file_of_an_absolute_path_and_an_installed_class(folder: Path) -> None:
    assert type(_build(f"{folder}/nets.py:Net")).__name__ == "Net"
    assert isinstance(_build("torchvision.models.shufflenet_v2_x0_5", num_classes=10), nn.Module)


#: target -> what the message says, and the hint
REFUSED = {
    "nets": ("is a module, not a class", "Needy, Net, Part, exits, factory, pair"),
    "nets.Nte": ("unknown name in nets.Nte: 'Nte'", "did you mean 'Net'?"),
    "nets.Net.Missing": ("unknown name in nets.Net.Missing: 'Missing'", "valid"),
    "nets.network": ("is a network, not what makes one", "nets.Net"),
    "nets.SIZES": ("is of type dict, neither a class nor a function", "package.module.Class"),
    "nets.pair": ("nets.pair makes an object of type tuple, not a torch.nn.Module", "function that returns one"),
    "nets.exits": ("nets.exits ended the program: sys.exit(3)", "__main__"),
    "nets.py": ("names a file and no class", "model.target=nets.py:Class"),
    "nets.py:Nte": ("unknown name in nets.py:Nte: 'Nte'", "did you mean 'Net'?"),
    "nots.py:Net": ("there is no file nots.py", "spelled right"),
    "nots.Net": ("there is no module 'nots' in this folder, on PYTHONPATH or installed", "start the command in the"),
    "lab.zoo.big.Net": ("unknown name in lab.zoo.big.Net: 'big'", "valid"),
    "lab/zoo/small": ("is not the name of a class", "path/to/file.py:Class"),
    "nets.": ("is not the name of a class", "package.module.Class"),
    "": ("is not the name of a class", "package.module.Class"),
    "needs.Net": ("raised ModuleNotFoundError: No module named 'package_that_nobody_has' (needs.py, line 2", "install"),
    "needs.py:Net": ("raised ModuleNotFoundError: No module named 'package_that_nobody_has' (needs.py", "install"),
    "breaks.Net": ("raised KeyError: 'first' (breaks.py, line 2", "mend the module"),
    "syntax.Net": ("raised SyntaxError: invalid syntax (syntax.py, line 1)", "mend the module"),
    "script.Net": ("ended the program: sys.exit(2)", "__main__"),
    "script.py:Net": ("ended the program: sys.exit(2)", "__main__"),
}


@pytest.mark.parametrize("target", REFUSED)
def test_what_makes_no_network_is_refused_by_name(folder: Path, target: str) -> None:
    message, hint = REFUSED[target]
    with pytest.raises(UserError) as caught:
        _build(target)
    assert message in caught.value.message
    assert hint in caught.value.hint


#: arguments -> what the message says
WRONG = {
    "raises": (
        "nets.Net",
        {"depth": 7},
        "nets.Net raised ValueError: depth must be 2, not 7 (nets.py, line 10, in __init",
    ),
    "unknown": (
        "nets.Net",
        {"widht": 7},
        "nets.Net cannot be built: Net.__init__() got an unexpected keyword argument",
    ),
    "missing": ("nets.Needy", {}, "missing 1 required positional argument: 'num_classes'"),
    "of a wrong type": ("nets.Net", {"width": "wide"}, "nets.Net raised TypeError: empty()"),
    "index": (
        "nets.Needy",
        {"num_classes": 3},
        "nets.Needy raised IndexError: list index out of range (nets.py, line 16",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_constructors_that_raise_are_one_line(folder: Path, kind: str) -> None:
    target, arguments, message = WRONG[kind]
    with pytest.raises(UserError) as caught:
        _build(target, **arguments)
    assert message in caught.value.message
    assert "check model.kwargs" in caught.value.hint
    assert ("num_classes" if "Needy" in target else "width, depth") in caught.value.hint


def test_a_file_is_read_once(folder: Path) -> None:
    assert find_target("nets.py:Net") is find_target("./nets.py:Net")


def test_what_importing_changes_for_the_process_is_undone(folder: Path) -> None:
    import torch

    (folder / "rude.py").write_text(
        "import torch\ntorch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)\nfrom nets import Net\n"
    )
    network = _build("rude.Net")
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
