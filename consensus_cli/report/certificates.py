"""What runs vouch for, as text: how much faster the network is, and how far what is saved is from what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from consensus_cli.report.formatting import NONE, fixed, ratio_text
from consensus_cli.report.runs import Runs
from consensus_cli.storage.certificate import read_certificate
from consensus_cli.storage.rundir import RunDir

HEADINGS = ("run", "measured on", "speed-up [95 %]", "target", "largest difference of a logit", "MACs leave out")


def sentence(certificate: Mapping[str, Any]) -> str:
    """Returns what a certificate says in a line; empty where there is none, or it is damaged."""
    if not (cells := _cells(certificate)):
        return ""
    _, speed, target, differences, _ = cells
    images = certificate["answers"]["saved"]["images"]
    told = [speed, "" if target == NONE else f"target {target}"]
    told.append(f"largest difference of a logit on {images} test images: {differences}")
    return f"certificate: {'; '.join(part for part in told if part not in ('', NONE))}"


def rows(runs: Runs, most: int) -> list[list[str]]:
    """Returns a line of text (see `HEADINGS`) for each of the latest finished runs that has a certificate."""
    found: list[list[str]] = []
    for _, row in runs.finished.sort_values("started_at", ascending=False, kind="stable").iterrows():
        folder = runs.folder(row)
        cells = _cells(read_certificate(RunDir(folder))) if folder else []
        if cells and len(found) < most:
            found.append([row["run_id"], *cells])
    return found


def _cells(certificate: Mapping[str, Any]) -> list[str]:
    try:
        where = "{device}, {runtime}, threads: {threads}, {precision}".format(**certificate)
        told = [faster(certificate["latency"]), _target(certificate["target"]), _differences(certificate)]
        certificate["answers"]["saved"]["images"]
        return [where, *told, str(certificate["macs_uncounted"])]
    except (KeyError, TypeError, ValueError, AttributeError):
        # It may come from anywhere.
        return []


def faster(latency: Sequence[Mapping[str, Any]]) -> str:
    """Returns the speed-up at each batch size, such as `1.71 [1.66, 1.75] times as fast at batch 1`."""
    told = []
    for timed in latency:
        ends = ", ".join(_times(end) for end in timed["speed_up_ci95"])
        told.append(f"{_times(timed['speed_up'])} [{ends}] times as fast at batch {timed['batch']}")
    return ", ".join(told) or NONE


def _times(speed_up: float | None) -> str:
    return fixed(math.nan if speed_up is None else speed_up)


def _target(target: Mapping[str, Any] | None) -> str:
    if target is None:
        return NONE
    asked, ends = target["asked"], target.get("saved_ci", (0, 0))
    told = f"{asked} at most" if isinstance(asked, str) else ratio_text(asked, target["quantity"])
    interval = f" [{', '.join(fixed(100 * end, 1) for end in ends)}]" if ends[0] < ends[1] else ""
    saved = fixed(100 * target["saved"], 1, "%") + interval
    return f"{told}: {'met' if target['met'] else 'missed'}, {saved} less"


def _differences(certificate: Mapping[str, Any]) -> str:
    compared = certificate["answers"] | certificate.get("exports", {})
    return ", ".join(f"{name} {found['max_difference']:.2g}" for name, found in compared.items())
