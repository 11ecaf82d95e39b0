"""Two real runs that the tests of the commands share."""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from helpers.quick import QUICK

from consensus_cli.cli.main import main

# Tests that run side by side share the cores; PyTorch, imported later, would take all of them for each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two runs of one configuration, the second with the baseline of the first, and what they printed."""
    folder = tmp_path_factory.mktemp("outputs")
    for flag, name in (("--quiet", "quiet.txt"), ("--json", "events.jsonl")):
        with (folder / name).open("w", encoding="utf-8") as printed, redirect_stdout(printed):
            assert main(["run", flag, *QUICK, "ratio=0.5", f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="session")
def finished_run(outputs: Path) -> Path:
    """The directory of a finished run."""
    return min((outputs / "runs").iterdir())
