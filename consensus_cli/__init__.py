"""Layer pruning of residual networks by the consensus of similarity metrics (arXiv 2411.14345)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from consensus_cli.errors import packages_told

if TYPE_CHECKING:
    from consensus_cli.api import *  # noqa: F403 (for type checkers and editors)

__version__ = "0.1.0"

#: module -> its public names, imported when one is first used: `consensus --help` does not wait for PyTorch, nor
#: somebody who only ranks blocks for what measures energy
_PUBLIC = {
    "data.split": ("Augmentation",),
    "errors": ("RunFailedError", "UserError"),
    "evaluation.comparison": ("Comparison", "compare"),
    "evaluation.cost.block_costs": ("Costs", "costs"),
    "evaluation.cost.energy": ("EnergyMeter",),
    "evaluation.robustness.attacks": ("Attack",),
    "experiment.python": ("RunResult", "run"),
    "models.classifier": ("Classifier", "normalized"),
    "pruning": ("Block", "find_blocks", "remove_blocks"),
    "scoring.metrics": ("register_metric",),
    "scoring.metrics.metric": ("Metric",),
    "scoring.ranking.consensus": ("Ranking",),
    "scoring.ranking.criteria": ("register_criterion",),
    "scoring.removals": ("Removal", "prune"),
    "scoring.samples": ("Samples",),
    "scoring.score": ("rank_blocks",),
    "storage.checkpoint": ("load_pruned",),
    "training": ("Recipe", "train"),
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 (all of them are strings)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with packages_told():
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
