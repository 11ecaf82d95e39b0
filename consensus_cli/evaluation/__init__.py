"""What a network costs and how well it answers: accuracy, complexity, energy, robustness."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consensus_cli.evaluation.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]


def __getattr__(name: str) -> Any:
    # Late: the configuration needs the attacks' settings alone, and `consensus --help` does not wait for PyTorch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from consensus_cli.evaluation import comparison

    return getattr(comparison, name)
