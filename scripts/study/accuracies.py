"""Accuracy of networks without some blocks, measured once per set of blocks."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from study.bench import PARTS, Bench, right_answers
from study.rows import Rows, joined, pack, split, unpack

#: (treatment, part, blocks in the order of the network)
Key = tuple[str, str, tuple[str, ...]]


class Accuracies:
    """The rows of `accuracy.csv`, and those still to be measured.

    A treated network depends on the set of blocks that are gone, not on their order: the weights stay, and batch norm
    is measured on the same images. So one row serves every criterion, draw and path that comes by the set.
    """

    def __init__(self, bench: Bench, folder: Path) -> None:
        self._bench = bench
        self._rows = Rows(folder, "accuracy")
        self._known = answers(self._rows.read())

    def right(self, removed: Collection[str], treatment: str, part: str) -> np.ndarray:
        """Returns whether the network is right about each image of a part, (n,) bool; measures it if need be."""
        self.measure(removed, treatment, (part,))
        return self._known[treatment, part, self._bench.in_order(removed)]

    def measure(self, removed: Collection[str], treatment: str, parts: Iterable[str] = PARTS) -> None:
        """Makes sure of the rows of one treated network, which is built once for all parts."""
        names = self._bench.in_order(removed)
        missing = [part for part in parts if (treatment, part, names) not in self._known]
        if not missing:
            return
        model = self._bench.without(names, treatment)
        for part in missing:
            images = self._bench.parts[part]
            self.keep(
                names, treatment, part, right_answers(model, images, self._bench.device, self._bench.precision)[0]
            )

    def keep(self, removed: Collection[str], treatment: str, part: str, right: np.ndarray) -> None:
        """Adds the row of answers (n,) bool, unless there is one."""
        names = self._bench.in_order(removed)
        if (treatment, part, names) in self._known:
            return
        self._rows.add(
            {
                "treatment": treatment,
                "part": part,
                "removed": joined(names),
                "images": len(right),
                "correct_images": int(right.sum()),
                "accuracy_pct": round(100 * float(right.mean()), 4),
                "device": self._bench.device.type,
                "precision": self._bench.precision,
                "right": pack(right),
            }
        )
        self._known[treatment, part, names] = right

    def __contains__(self, key: Key) -> bool:
        return key in self._known


def answers(rows: pd.DataFrame) -> dict[Key, np.ndarray]:
    """Returns the answers (n,) bool in rows of `accuracy.csv`."""
    return {
        (treatment, part, split(removed)): unpack(right, images)
        for treatment, part, removed, right, images in zip(
            *(rows[column] for column in ("treatment", "part", "removed", "right", "images")), strict=True
        )
    }
