"""What makes two runs the same: the hash of every setting that changes the result."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from consensus_cli.config.schema import RunConfig
from consensus_cli.evaluation.cost.quantities import MEASURED
from consensus_cli.experiment.inputs import model_folder, weights_hash
from consensus_cli.storage.rundir import config_hash

#: what does not change the result: where things lie and on what they are computed
_NOT_IN_HASH = (
    "output_dir",
    "device",
    "threads",
    "compile",
    "tracker",
    "dataset.root",
    "dataset.download",
    "dataset.workers",
    # By the time a run has a hash, it is known which images it uses.
    "dataset.if_missing",
    "if_done",
)

#: settings of later versions -> value with which a run is as it was before, so that earlier runs are still known
_LATER: dict[str, Any] = {
    "controls": [],
    "transfer": {"source": None, "name": None},
    "finetune.teacher": None,
    "model.reset_head": False,
    "prune.replace": "nothing",
    "prune.refit": False,
    "scoring.repair": False,
    "prune.target": None,
    "prune.overshoot": None,
    "prune.confidence": 0.95,
    "prune.batch_size": 1,
    "prune.runtime": "torch",
    "prune.precision": "fp32",
    "criterion.per": "nothing",
}


def run_hash(config: RunConfig) -> str:
    """Returns the hash of every setting that changes a run's result.

    A file of weights counts by content, not by path. What else lies in files (images, code) is distinguished by
    `inputs.Inputs`, whatever its path.
    """
    plain = asdict(config)
    if (content := weights_hash(config.model)) is not None:
        plain["model"]["weights"] = content
    if (content := weights_hash(replace(config.model, weights=config.finetune.teacher))) is not None:
        plain["finetune"]["teacher"] = content
    plain["evaluate"]["shift"] = dict.fromkeys(config.evaluate.shift)
    if config.model.target is not None:
        # Of `path/to/file.py:Class` the name counts.
        plain["model"]["target"] = config.model.target.rpartition(".py:")[2]
    if model_folder(config.model) is not None:
        plain["model"]["name"] = None
    if config.dataset.source == "hf" and Path(config.dataset.name).is_dir():
        plain["dataset"]["name"] = None
    del plain["transfer"]["root"]
    as_before = [key for key, value in _LATER.items() if _value(plain, key) == value]
    left_out = {*_NOT_IN_HASH, *as_before}
    if {config.prune.quantity, config.criterion.per} & MEASURED.keys():
        # What is measured decides which blocks go.
        left_out -= {"device", "threads"}
    return config_hash(plain, exclude=left_out)


def _value(plain: Mapping[str, Any], key: str) -> object:
    return functools.reduce(lambda node, name: node[name], key.split("."), plain)
