"""What the rows say: estimates with intervals, regret, agreement. Nothing here measures, and nothing is rounded."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import kendalltau

from consensus_cli.errors import UserError
from consensus_cli.models.resnet import resnet
from consensus_cli.pruning import schedule
from consensus_cli.pruning.blocks import Block, candidates, find_blocks
from study.accuracies import Key, answers
from study.criteria import allowed_order, draws_of, metric_orders
from study.decisions import Decisions, best_first
from study.plan import Plan
from study.rows import Rows, joined

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over images and draws with its 95 % interval, in percentage points.

    Attributes:
        mean_pp: the mean.
        low_pp: lower end of the interval.
        high_pp: its upper end.
    """

    mean_pp: float
    low_pp: float
    high_pp: float

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low_pp > 0 or self.high_pp < 0


@dataclass(frozen=True)
class Evidence:
    """The rows of the study, read.

    Attributes:
        plan: its sizes.
        blocks: every residual block of the unpruned network.
        scores: rows of `scores.csv`.
        known: the answers in `accuracy.csv`.
        decisions: who removes what.
        paths: rows of `paths.csv`.
        robustness: rows of `robustness.csv`.
        costs: rows of `costs.csv`.
        healing, healing_tuned, healing_robustness, healing_vit: rows of the files of these names.
        iterative: rows of `iterative.csv`, empty where there is none.
    """

    plan: Plan
    blocks: list[Block]
    scores: pd.DataFrame
    known: dict[Key, np.ndarray]
    decisions: Decisions
    paths: pd.DataFrame
    robustness: pd.DataFrame
    costs: pd.DataFrame
    healing: pd.DataFrame
    healing_tuned: pd.DataFrame
    healing_robustness: pd.DataFrame
    healing_vit: pd.DataFrame
    iterative: pd.DataFrame

    @classmethod
    def of_resnet56(cls, folder: Path) -> Evidence:
        """Reads the rows of the study itself."""
        return cls.read(folder, Plan(), find_blocks(resnet(56), torch.zeros(1, 3, 32, 32)))

    @classmethod
    def read(cls, folder: Path, plan: Plan, blocks: list[Block]) -> Evidence:
        """Reads the rows in a folder.

        Raises:
            UserError: the one-shot protocol has not been measured to its end.
        """
        if not Rows(folder, "paths").path.is_file():
            raise UserError(f"{folder} holds no rows of the one-shot protocol", "run scripts/study.sh one-shot first")
        iterative = folder / "iterative.csv"
        return cls(
            plan,
            blocks,
            Rows(folder, "scores").read(),
            answers(Rows(folder, "accuracy").read()),
            Decisions.read(folder, plan, candidates(blocks)),
            Rows(folder, "paths").read(),
            Rows(folder, "robustness").read(),
            Rows(folder, "costs").read(),
            *(Rows(folder, f"healing{name}").read() for name in ("", "_tuned", "_robustness", "_vit")),
            pd.read_csv(iterative) if iterative.is_file() else pd.DataFrame(),
        )

    @property
    def names(self) -> list[str]:
        """Names of the candidates, in the order of the network."""
        return [block.name for block in candidates(self.blocks)]

    @property
    def counts(self) -> dict[float, int]:
        """Ratio -> number of blocks that go."""
        return {ratio: schedule.blocks_to_remove(ratio, len(self.names)) for ratio in self.plan.ratios}

    def removed(self, criterion: str, count: int) -> list[tuple[str, ...]]:
        """Returns what a criterion or oracle removes, one set per draw, in the order of the network."""
        least = self.plan.min_blocks_per_stage
        orders = [allowed_order(order, self.blocks, least) for order in self.decisions.orders[criterion]]
        return [self._in_order(order[:count]) for order in orders]

    def right(self, sets: Sequence[tuple[str, ...]], treatment: str = "recalibrated") -> np.ndarray:
        """Returns the answers on the images reported on, (sets, images) float.

        Raises:
            UserError: a set has not been measured.
        """
        for names in sets:
            if (treatment, "report", names) not in self.known:
                raise UserError(
                    f"not measured, {treatment}: {joined(names)}", "run the words of scripts/study.sh to their end"
                )
        return np.stack([self.known[treatment, "report", names] for names in sets]).astype(np.float32)

    def oracle(self, count: int) -> str:
        """Returns the oracle whose set of so many blocks is better on the selection images."""
        accuracy = {
            name: self.known["recalibrated", "selection", self.removed(name, count)[0]].mean()
            for name in self.decisions.oracles
        }
        return max(accuracy, key=lambda name: accuracy[name])

    def regret(self, criterion: str, count: int) -> Estimate:
        """Returns the oracle's accuracy minus the criterion's, at so many blocks; small is good."""
        return difference(
            self.right(self.removed(self.oracle(count), count)), self.right(self.removed(criterion, count))
        )

    def first_regret(self, criterion: str, treatment: str) -> Estimate:
        """Returns the same for the first block alone, with an oracle that knows the treatment."""
        best = best_first(self.known, self.names, treatment)[:1]
        return difference(self.right([best], treatment), self.right(self.removed(criterion, 1), treatment))

    def has(self, treatment: str) -> bool:
        """Says whether the removal of every single candidate has been measured with a treatment."""
        return all((treatment, part, (n,)) in self.known for n in self.names for part in ("report", "selection"))

    def tau_with_truth(self, criterion: str, treatment: str) -> float:
        """Returns the mean over draws of Kendall's τ between a criterion's order and the accuracy each block costs."""
        kept = self.right([(name,) for name in self.names], treatment).mean(axis=1)
        lost = dict(zip(self.names, -kept, strict=True))
        orders = self.decisions.orders[criterion]
        taus = [kendalltau(range(len(order)), [lost[name] for name in order]).statistic for order in orders]
        return float(np.mean(taus))

    def stability(self, samples_per_class: int) -> dict[str, tuple[float, float]]:
        """Returns criterion -> (mean τ, share of equal first choices) between a draw of this size and the largest.

        Each draw is compared with the largest samples of all other draws, which share no more images with it than
        chance has it.
        """
        largest = metric_orders(self.scores, max(self.plan.samples_per_class))
        result = {}
        for criterion, orders in metric_orders(self.scores, samples_per_class).items():
            pairs = list(_other_draws(orders, largest[criterion]))
            taus = [kendalltau([b.index(name) for name in a], range(len(a))).statistic for a, b in pairs]
            result[criterion] = float(np.mean(taus)), float(np.mean([a[0] == b[0] for a, b in pairs]))
        return result

    def metric_taus(self) -> pd.DataFrame:
        """Returns Kendall's τ between the metrics' distances, mean over the draws of the decisive size."""
        draws = draws_of(self.scores, self.plan.decisive_samples_per_class)
        tables = [pd.DataFrame(distances).corr(method="kendall") for _, _, distances in draws]
        return sum(tables[1:], tables[0]) / len(tables)

    def path(self, criterion: str, against: str) -> list[tuple[str, ...]]:
        """Returns the whole paths of the stepwise protocol, one per draw, in order of removal."""
        rows = self.paths[(self.paths["criterion"] == criterion) & (self.paths["against"] == against)]
        paths = [tuple(path.sort_values("step")["removed"]) for _, path in rows.groupby("draw")]
        # Up to the first that is unfinished: what is compared draw by draw is told apart by position.
        return list(itertools.takewhile(lambda path: len(path) == max(self.counts.values()), paths))

    def path_sets(self, criterion: str, against: str, count: int) -> list[tuple[str, ...]]:
        """Returns what the stepwise protocol has removed after so many steps, one set per draw."""
        return [self._in_order(path[:count]) for path in self.path(criterion, against)]

    def _in_order(self, removed: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in self.names if name in removed)


def difference(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Returns the accuracy of the first minus that of the second, with a 95 % interval.

    Percentile bootstrap (Efron & Tibshirani 1993, chapter 13) over images and draws: each resample draws images, the
    same for both, and draws of the sample; where both have as many draws, draw i of one belongs to draw i of the other.

    Args:
        first: (d, n) answers, 0 or 1, of d draws about n images.
        second: (e, n) the same.
    """
    images, draws = _image_weights(first.shape[1]), np.random.default_rng(1)
    weights = [draws.multinomial(len(a), np.full(len(a), 1 / len(a)), RESAMPLES) / len(a) for a in (first, second)]
    if len(first) == len(second):
        weights[1] = weights[0]
    shares = [((images @ a.T) * w).sum(axis=1) for a, w in zip((first, second), weights, strict=True)]
    low, high = np.percentile(100 * (shares[0] - shares[1]), (2.5, 97.5))
    return Estimate(100 * float(first.mean() - second.mean()), float(low), float(high))


@functools.lru_cache(maxsize=2)
def _image_weights(count: int) -> np.ndarray:
    """Returns how often each image is drawn in each resample, as a share, (RESAMPLES, count)."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return drawn.astype(np.float32) / count


def _other_draws(
    orders: Sequence[tuple[str, ...]], largest: Sequence[tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    for i, order in enumerate(orders):
        for j, reference in enumerate(largest):
            if i != j:
                yield order, reference
