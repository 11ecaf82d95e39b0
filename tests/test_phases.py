"""What the phases of a run use adds up, also where one fails."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from consensus_cli.config.composition import compose_run
from consensus_cli.data.share import ALL
from consensus_cli.evaluation.cost.energy import Consumption
from consensus_cli.experiment.steps import Steps
from consensus_cli.screen import open_screen
from consensus_cli.storage.state import RunState


def burn(seconds: float) -> None:
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        pass


def fail_late() -> None:
    burn(0.1)
    raise KeyError


def test_phases_add_up_even_when_one_fails() -> None:
    state = RunState()
    threads = SimpleNamespace(lowered=[])
    prepared = cast(Any, SimpleNamespace(config=compose_run([]), device="cpu", threads=threads))
    steps = Steps(prepared, state, ALL, open_screen("none"))
    with steps._phase("baseline", state.phases):
        burn(0.1)
    with pytest.raises(KeyError), steps._phase("score", state.phases):
        fail_late()
    with steps._phase("baseline", state.phases), steps._phase("score", state.phases):
        burn(0.1)
    assert list(state.phases) == ["baseline", "score"]
    assert all(used.kwh > 0 for used in state.phases.values())
    assert state.phases["baseline"].duration_s > 0.2
    total = sum(state.phases.values(), Consumption())
    assert total.kwh == pytest.approx(sum(used.kwh for used in state.phases.values()))
