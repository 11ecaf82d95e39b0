"""What is imported for good is not searched for garbage until the process ends; everything else still is."""

import gc
import importlib.util
import subprocess
import sys
import types
import weakref

import pytest

from consensus_cli.cli.fast_imports import lasting_imports

MADE_UP = ("large", "larger")


@pytest.fixture(autouse=True)
def _as_before():
    yield
    gc.unfreeze()
    for name in MADE_UP:
        sys.modules.pop(name, None)


def imported(name: str) -> list[list[int]]:
    """Adds a module, as an import does, that holds some objects."""
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].held = [[number] for number in range(100)]
    return sys.modules[name].held


def test_what_the_body_imports_is_out_of_the_collectors_sight():
    before = gc.get_freeze_count()
    with lasting_imports():
        assert not gc.isenabled()
        held = imported("large")
    assert gc.get_freeze_count() >= before + len(held)
    assert gc.isenabled()


def test_a_body_that_imports_nothing_new_freezes_nothing():
    with lasting_imports():
        imported("large")
    before, of_a_run = gc.get_freeze_count(), [[number] for number in range(100)]
    with lasting_imports():
        pass
    assert gc.get_freeze_count() == before, len(of_a_run)


class Cycle:
    def __init__(self):
        self.own = self


@pytest.mark.parametrize("more", [[], ["larger"]])
def test_garbage_between_two_calls_is_collected(more):
    """As in a sweep: what one run leaves must not stay until the end of all."""
    with lasting_imports():
        imported("large")
    gc.disable()
    left = weakref.ref(Cycle())
    gc.enable()
    with lasting_imports():
        for name in more:
            imported(name)
    gc.collect()
    assert left() is None


def test_composing_a_configuration_does_not_wait_for_pytorch():
    script = (
        "import sys; from consensus_cli.config.composition import compose_run; compose_run([]);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "late"),
    [
        ("--help", "torch numpy hydra"),
        ("list", "torch numpy hydra"),
        ("list models", "torch numpy"),
        ("list blocks model=resnet20", "torchvision torch._dynamo triton sympy scipy sklearn matplotlib accelerate"),
    ],
)
def test_the_first_contact_does_not_wait_for_what_it_does_not_need(words, late):
    script = (
        "import sys; from consensus_cli.cli.main import main\n"
        f"code = main({words.split()!r})\n"
        f"late = [name for name in {late.split()!r} if name in sys.modules]\n"
        "sys.exit(code or ' '.join(late) or None)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_import_that_fails_leaves_the_collector_as_it_was():
    with pytest.raises(ImportError), lasting_imports():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with lasting_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="this build of PyTorch has no Triton")
def test_a_process_ends_without_complaints():
    """Triton's bindings report what the collector did not find at the end."""
    script = (
        "from consensus_cli.cli.fast_imports import lasting_imports\n"
        "with lasting_imports():\n    import torch._dynamo, triton"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "leaked" not in done.stderr
