"""The beginning and the end of a run on screen: what will happen, and baseline, pruned network and change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from consensus_cli import __version__
from consensus_cli.prepare import Prepared
from consensus_cli.pruning.blocks import Block
from consensus_cli.report.measures import changes
from consensus_cli.report.source import complete
from consensus_cli.scoring.consensus import kendall_tau
from consensus_cli.screen import Screen
from consensus_cli.steps import Scores


def show_header(screen: Screen, prepared: Prepared, run_dir: Path) -> None:
    """Shows what will run."""
    config, images = prepared.config, prepared.images
    goal = (
        f"{prepared.target_blocks} of {prepared.candidates} candidate blocks"
        if config.prune.unit == "blocks"
        else f"{config.ratios[-1]:.1%} of the MACs ({prepared.candidates} candidate blocks)"
    )
    shape = "×".join(str(n) for n in images.train.image_shape)
    votes = f": {', '.join(prepared.votes)}" if prepared.votes else ""
    screen.line(f"consensus {__version__}: {config.model.name} on {config.dataset.name}, seed {config.seed}")
    screen.line(
        f"  images     {len(images.train)} train, {len(images.test)} test, {shape}, {len(images.classes)} classes"
    )
    screen.line(f"  network    {prepared.macs_base / 1e6:.2f} M MACs, {len(prepared.blocks)} residual blocks")
    screen.line(f"  criterion  {config.criterion.name}{votes}")
    stops = f", a row at each of {', '.join(f'{ratio:g}' for ratio in config.ratios)}" if len(config.ratios) > 1 else ""
    screen.line(f"  removes    {goal}, {config.prune.step} per step{stops}")
    screen.line(f"  device     {prepared.device}, training in {prepared.precision}")
    screen.line(f"  directory  {run_dir}")


def show_comparison(screen: Screen, row: Mapping[str, Any]) -> None:
    """Shows baseline, pruned network and change, and where the row is."""
    title = f"{row['model']} without {row['blocks_removed']} of {row['blocks_candidates']} blocks"
    table, _ = complete(pd.DataFrame([dict(row)]))
    rows = [(c.label, c.before, c.after, c.change) for c in changes(table.iloc[0], table)]
    screen.table(title, ("", "baseline", "pruned", "change"), rows)
    if row["energy_estimated"]:
        screen.warning("energy is estimated from CPU time (no energy counter here): it says little more than time does")
    screen.line(f"removed, in order: {row['removed_blocks'].replace(';', ' ')}")
    screen.line(f"run {row['run_id']} took {row['duration_s']:.0f} s; its files: {row['run_dir']}")


def show_scores(screen: Screen, scores: Scores, path: Path) -> None:
    """Shows one scoring: blocks × metrics (distance and rank), the sum, intervals, and how far the metrics agree."""
    ranking, stability = scores.ranking, scores.stability
    columns = ["block", *ranking.distances, "sum"]
    if stability is not None:
        columns += ["place, 95 %", "first in"]
    rows = []
    for i in ranking.order:
        cells = [f"{ranking.distances[m][i]:.4g} ({ranking.ranks[m][i]:g})" for m in ranking.distances]
        row = [ranking.blocks[i], *cells, f"{ranking.importance[i]:g}"]
        if stability is not None:
            row += [f"{stability.low[i]:g}–{stability.high[i]:g}", f"{100 * stability.least_share[i]:.0f} %"]
        rows.append(row)
    screen.table("distance (rank) without each block, least important first", columns, rows)
    if len(ranking.distances) > 1:
        tau = kendall_tau(ranking.distances)
        agreement = [[name, *(f"{tau.loc[name, other]:.2f}" for other in tau.columns)] for name in tau.index]
        screen.table("Kendall's tau between the metrics", ["", *tau.columns], agreement)
    screen.line(f"scores: {path}")


def show_blocks(
    screen: Screen, network: str, blocks: Sequence[Block], macs: Mapping[str, int], total_macs: int
) -> None:
    """Shows every residual block, in order of execution."""
    rows = [
        (
            block.name,
            str(block.stage + 1),
            "×".join(map(str, block.shape)),
            f"{macs[block.name] / 1e6:.2f}",
            f"{100 * macs[block.name] / total_macs:.4g} %",
            "yes" if block.removable else f"no: {block.reason}",
        )
        for block in blocks
    ]
    screen.table(f"residual blocks of {network}", ("block", "stage", "shape", "M MACs", "share", "removable"), rows)
    removable = sum(block.removable for block in blocks)
    screen.line(f"{removable} of {len(blocks)} can be removed; {total_macs / 1e6:.2f} M MACs in all")
