"""Which blocks go where what they save counts as well as what they are worth: a small integer programme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from consensus_cli.pruning.block import Block

#: importance is scaled to this mean; by this share of it, earlier blocks are preferred among equals
_MEAN, _PREFERENCE = 1000.0, 1e-6
#: shares are given to the solver so many times as large: what it calls enough may lack a millionth
_FINER = 1e4
#: of a share: what sums of the same numbers in another order may differ by
_ROUNDING = 1e-9


def by_value(
    blocks: Sequence[Block],
    importance: np.ndarray,
    savings: Mapping[str, float],
    wanted: float,
    most_in_stage: Mapping[int, int],
    *,
    overshoot: float | None = None,
) -> list[str]:
    """Returns the names of all blocks in the order in which they should go, those of the best set first.

    The best set is the one of least importance in all that saves as much as is wanted: min Σ importance · x subject to
    Σ saving · x ≥ wanted, at most so many of each stage, x in {0, 1}; solved exactly (HiGHS, by scipy). Where nothing
    saves as much, it is the best of those that save most. In it, as behind it, blocks of the least importance for what
    they save come first.

    Args:
        blocks: (c) candidates, those to prefer among equals first.
        importance: (c,) 0 or more; where any is below, ranks take their place.
        savings: share of the network's cost that goes with each block, by name; below 0 counts as nothing.
        wanted: share that is to be saved by some of them.
        most_in_stage: how many blocks of each stage may go.
        overshoot: share beyond the wanted one that the best set may save, where any set keeps to that; None: any.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.stats import rankdata

    saved = np.maximum([savings[block.name] for block in blocks], 0.0)
    values = np.asarray(importance, dtype=np.float64)
    if values.min() < 0:
        values = rankdata(values)
    values = values * (_MEAN / values.mean() if values.mean() > 0 else 1.0)
    values += _MEAN * _PREFERENCE * np.arange(len(blocks))
    stages = sorted({block.stage for block in blocks})
    in_stage = np.array([[block.stage == stage for block in blocks] for stage in stages], dtype=np.float64)
    limits = np.array([most_in_stage[stage] for stage in stages], dtype=np.float64)
    most = sum(np.sort(saved[row > 0])[::-1][: int(limit)].sum() for row, limit in zip(in_stage, limits, strict=True))
    wanted = min(wanted, most)

    def best(at_most: float) -> np.ndarray | None:
        enough = LinearConstraint(_FINER * saved[None], _FINER * (wanted - _ROUNDING), _FINER * (at_most + _ROUNDING))
        within = LinearConstraint(in_stage, -np.inf, limits)
        # The solver's own gap would let it stop 0.01 % short of the best.
        gap = {"mip_rel_gap": 0}
        found: np.ndarray | None = milp(
            values, constraints=[enough, within], integrality=1, bounds=Bounds(0, 1), options=gap
        ).x
        return found

    chosen = best(np.inf if overshoot is None else wanted + overshoot)
    if chosen is None:
        chosen = best(np.inf)
    assert chosen is not None
    with np.errstate(divide="ignore", over="ignore"):
        price = np.where(saved > 0, values / saved, np.inf)
    order = np.lexsort((values, price, chosen < 0.5))
    return [blocks[i].name for i in order]
