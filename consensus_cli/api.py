"""The public names, gathered; `import consensus_cli as cc` has them too, each imported when it is first used.

docs/python.md shows them at work.
"""

from consensus_cli.data.split import Augmentation
from consensus_cli.errors import RunFailedError, UserError
from consensus_cli.evaluation.comparison import Comparison, compare
from consensus_cli.evaluation.cost.block_costs import Costs, costs
from consensus_cli.evaluation.cost.energy import EnergyMeter
from consensus_cli.evaluation.robustness.attacks import Attack
from consensus_cli.experiment.python import RunResult, run
from consensus_cli.models.classifier import Classifier, normalized
from consensus_cli.pruning import Block, find_blocks, remove_blocks
from consensus_cli.scoring.metrics import register_metric
from consensus_cli.scoring.metrics.metric import Metric
from consensus_cli.scoring.ranking.consensus import Ranking
from consensus_cli.scoring.ranking.criteria import register_criterion
from consensus_cli.scoring.removals import Removal, prune
from consensus_cli.scoring.samples import Samples
from consensus_cli.scoring.score import rank_blocks
from consensus_cli.storage.checkpoint import load_pruned
from consensus_cli.training import Recipe, train
