"""What a network costs block by block: what it saves without each that can go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from consensus_cli.data.source import Progress
from consensus_cli.errors import UserError
from consensus_cli.evaluation.cost.energy import EnergyMeter
from consensus_cli.evaluation.cost.quantities import COUNTED, MEASURED
from consensus_cli.evaluation.cost.savings import Conditions, Measured, measure
from consensus_cli.models.classifier import Classifier, network_of
from consensus_cli.models.copying import Network, sharing
from consensus_cli.models.macs import count_macs
from consensus_cli.pruning.block import Block
from consensus_cli.pruning.blocks import candidates, check_candidates, find_blocks
from consensus_cli.pruning.schedule import block_costs
from consensus_cli.pruning.surgery import remove_blocks

#: blocks that agree in these are the same work
_ALIKE = ["stage", "shape", *COUNTED]


@dataclass(frozen=True)
class Costs:
    """What a network saves without each block that can go; prints as a table.

    Attributes:
        table: one line per candidate, in the order of the network: `block`, `stage`, `shape`; `macs` and `params` that
            go with it, with the network's own as `…_base`; of what was measured, such as latency, `latency_base_ms`,
            `latency_without_ms`, and the share that is saved, `latency_saved_pct` with `…_low_pct` and `…_high_pct`,
            which hold for all blocks at once with `confidence`; and `device threads batch_size runtime precision`.
    """

    table: pd.DataFrame

    @property
    def measured(self) -> list[str]:
        """What was measured, such as `latency`."""
        return [quantity for quantity in MEASURED if f"{quantity}_saved_pct" in self.table]

    def savings(self, quantity: str) -> dict[str, float]:
        """Returns the share of the network's cost that goes with each block, in (−∞, 1).

        Blocks that are the same work (shape, MACs, parameters, stage) and whose intervals have something in common get
        their median: their differences are noise.

        Args:
            quantity: one of `COUNTED`, or of what was measured.
        """
        table = self.table
        if quantity in COUNTED:
            shares = table[quantity] / table[f"{quantity}_base"]
        else:
            percent = table[f"{quantity}_saved_pct"].copy()
            for _, group in table.groupby(_ALIKE):
                if self._agree(group, quantity):
                    percent[group.index] = percent[group.index].median()
            shares = percent / 100
        return dict(zip(table["block"], shares.astype(float), strict=True))

    def disagreeing(self, quantity: str) -> list[str]:
        """Returns blocks that are the same work and whose intervals have nothing in common, ` ` between them."""
        groups = (group for _, group in self.table.groupby(_ALIKE) if not self._agree(group, quantity))
        return [" ".join(group["block"]) for group in groups]

    def is_noise(self, quantity: str) -> pd.Series:
        """Returns of each line whether the block may as well save nothing: the interval spans zero."""
        low, high = (self.table[f"{quantity}_saved_{end}_pct"] for end in ("low", "high"))
        return (low <= 0) & (high >= 0) & (low < high)

    @staticmethod
    def _agree(group: pd.DataFrame, quantity: str) -> bool:
        return bool(group[f"{quantity}_saved_low_pct"].max() <= group[f"{quantity}_saved_high_pct"].min())

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Returns head and lines of the table for people."""
        head = ["block", "stage", "M MACs", "k params", *(f"{quantity} saved, %" for quantity in self.measured)]
        shown = [
            self.table["block"],
            (self.table["stage"] + 1).astype(str),
            self.table["macs"].map(lambda macs: f"{macs / 1e6:.2f}"),
            self.table["params"].map(lambda params: f"{params / 1e3:.1f}"),
            *map(self._shown, self.measured),
        ]
        return head, [list(line) for line in zip(*shown, strict=True)]

    def _shown(self, quantity: str) -> list[str]:
        ends = (f"{quantity}_saved{end}_pct" for end in ("", "_low", "_high"))
        values = zip(*(self.table[column] for column in ends), self.is_noise(quantity), strict=True)
        return [
            f"{share:.1f}" + (f" [{low:.1f}, {high:.1f}]" if low < high else "") + (" noise" if noise else "")
            for share, low, high, noise in values
        ]

    def __str__(self) -> str:
        head, lines = self.rows()
        return pd.DataFrame(lines, columns=head).to_string(index=False)


def costs(
    model: nn.Module,
    images: Tensor,
    *,
    batch_size: int = 1,
    runtime: str = "torch",
    precision: str = "fp32",
    confidence: float = 0.95,
    seconds: float = 0.5,
    energy: EnergyMeter | None = None,
    granularity: str = "block",
) -> Costs:
    """Measures what a network saves without each block that can go: MACs, parameters, latency, memory, energy.

        print(costs(model, images[:2]))              # a table
        costs(model, images[:2]).savings("latency")  # block -> share

    Copies of the network that share its weights run in turn with it, in short pieces and an order drawn anew each time;
    the model is left as it is. The machine should be quiet: otherwise the intervals are wide.

    Args:
        model: any network with residual blocks, on any device.
        images: (n, c, h, w) a few images as the model takes them, on its device.
        batch_size: images per forward pass.
        runtime: what runs the networks: `torch`, `torch-compile` or `onnxruntime`.
        precision: `fp32` or `bf16`.
        confidence: with which all intervals of a column hold at once.
        seconds: for which the latency of each network is measured.
        energy: `EnergyMeter("BRA")` measures the energy of inference as well; None: no energy.
        granularity: `block`, or `branch`, as for `find_blocks`.

    Raises:
        UserError: a network without blocks that can be removed, or a runtime that is missing or cannot take it.
    """
    if batch_size < 1 or not 0 < confidence < 1:
        raise UserError(
            f"batch_size is {batch_size}, confidence {confidence}", "at least one image, and between 0 and 1"
        )
    under = Conditions(
        images.shape[1:], images.device, batch_size, runtime, precision, confidence, latency_s=seconds, meter=energy
    )
    blocks = find_blocks(model, images, granularity)
    check_candidates(blocks)
    return measure_blocks(model, blocks, images[:1], under, under.measurable)


def measure_blocks(
    model: nn.Module,
    blocks: Sequence[Block],
    image: Tensor,
    under: Conditions,
    quantities: Sequence[str],
    *,
    progress: Progress | None = None,
) -> Costs:
    """Returns what a network saves without each block.

    Args:
        model: the network that the blocks were found in.
        blocks: of `find_blocks`; those that cannot be removed are left out.
        image: (1, c, h, w) as the model takes it.
        under: what it is measured with.
        quantities: keys of `MEASURED`.
        progress: called before each of them.
    """
    going = candidates(blocks)
    without = {block.name: pruned_copy(model, [block.name]) for block in going}
    with torch.no_grad():
        inputs = model.inputs(image) if isinstance(model, Classifier) else image
    counted = count_macs(network_of(model), inputs)
    macs, params = block_costs(counted, going), _count(model)
    columns: dict[str, Any] = {
        "block": [block.name for block in going],
        "stage": [block.stage for block in going],
        "shape": ["×".join(map(str, block.shape)) for block in going],
        "macs": list(macs.values()),
        "macs_base": counted.total,
        "params": [params - _count(network) for network in without.values()],
        "params_base": params,
    }
    for done, quantity in enumerate(quantities):
        if progress is not None:
            progress(f"measuring {quantity}", done, len(quantities))
        columns |= _columns(quantity, measure(model, without, quantity, under))
    columns |= {
        "device": str(under.device),
        "threads": torch.get_num_threads(),
        "batch_size": under.batch_size,
        "runtime": under.runtime,
        "precision": under.precision,
        "confidence": under.confidence,
    }
    return Costs(pd.DataFrame(columns))


def _columns(quantity: str, found: dict[str, Measured]) -> dict[str, list[float]]:
    unit, each = MEASURED[quantity].lower(), found.values()
    return {
        f"{quantity}_base_{unit}": [measured.base for measured in each],
        f"{quantity}_without_{unit}": [measured.value for measured in each],
        f"{quantity}_saved_pct": [100 * measured.saving.share for measured in each],
        f"{quantity}_saved_low_pct": [100 * measured.saving.low for measured in each],
        f"{quantity}_saved_high_pct": [100 * measured.saving.high for measured in each],
    }


def pruned_copy(model: Network, names: Sequence[str]) -> Network:
    """Returns a copy of a network without some blocks, which shares the weights of the others with it."""
    pruned = sharing(model)
    remove_blocks(pruned, names)
    return pruned


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
