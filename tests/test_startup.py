"""What is imported for good is never searched for garbage again; everything else still is."""

import gc
import subprocess
import sys
import weakref

import pytest

from consensus_cli.startup import lasting_imports


@pytest.fixture(autouse=True)
def _thawed():
    yield
    gc.unfreeze()


def test_what_the_body_made_is_out_of_the_collectors_sight():
    before = gc.get_freeze_count()
    with lasting_imports():
        assert not gc.isenabled()
        made = [[number] for number in range(100)]
    assert gc.get_freeze_count() >= before + len(made)
    assert gc.isenabled()


class Cycle:
    def __init__(self):
        self.own = self


def test_garbage_made_later_is_collected_as_ever():
    with lasting_imports():
        pass
    left = weakref.ref(Cycle())
    gc.collect()
    assert left() is None


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


def test_a_process_ends_without_complaints():
    """Triton's bindings report what the collector did not find at the end."""
    script = (
        "from consensus_cli.startup import lasting_imports\nwith lasting_imports():\n    import torch._dynamo, triton"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "leaked" not in done.stderr
