"""`consensus list`: what there is to choose from, each with the line that describes it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from consensus_cli.config.conf_files import choices
from consensus_cli.errors import UserError, unknown_name
from consensus_cli.evaluation.robustness.attacks import ATTACKS

#: what `consensus list` shows -> the config group that holds it
LISTS = {
    "models": "model",
    "datasets": "dataset",
    "baselines": "baseline",
    "metrics": "metrics",
    "criteria": "criterion",
    "prunings": "prune",
    "finetunings": "finetune",
    "attacks": "attacks",
    "evaluations": "evaluate",
    "experiments": "experiment",
    "budgets": "budget",
}


def show(what: str, further: Sequence[str]) -> None:
    """Prints what a list of `LISTS` holds, or with an empty name the lists that there are.

    Raises:
        UserError: an unknown list, or words behind a list that takes none.
    """
    if not what:
        lists = {name: f"what {group}= may be" for name, group in LISTS.items()}
        _table({**lists, "blocks": "the residual blocks of a network: consensus list blocks key=value …"})
        return
    if what not in LISTS:
        raise unknown_name("list", what, [*LISTS, "blocks"])
    if further:
        raise UserError(f"consensus list {what} takes nothing else, not '{further[0]}'", f"consensus list {what}")
    options = choices(LISTS[what])
    if what == "attacks":
        single = {name: f"{method.summary}; attacks.suite.{name}.name={name}" for name, method in ATTACKS.items()}
        options = {name: f"a suite: {text}" for name, text in options.items()} | single
    _table(options)


def _table(lines: Mapping[str, str]) -> None:
    width = max(map(len, lines))
    for name, text in lines.items():
        sys.stdout.write(f"{name:<{width}}  {text}\n")
