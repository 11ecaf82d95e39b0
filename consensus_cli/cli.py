"""The `consensus` command. PyTorch and Hydra are imported only by the subcommands that need them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from consensus_cli import __version__
from consensus_cli.errors import UserError, tell, unknown_name

HELP = """\
consensus: layer pruning by the consensus of similarity metrics

usage: consensus COMMAND [key=value …]

commands
  run      score → prune → fine-tune → evaluate; one row in OUTPUT_DIR/results.csv
             consensus run model=resnet56 ratio=0.5
             consensus run -m model=resnet32,resnet56 ratio=0.25,0.5 seed=0,1   (a sweep)
             consensus run ratio=0.5 --cfg job                                  (what would run)
  list     models | datasets | metrics | criteria | attacks
             consensus list metrics

settings are written key=value; what there is to set, with the defaults: consensus run --cfg job
groups: model dataset baseline metrics criterion prune finetune attacks evaluate experiment

options
  --help     this text
  --version  the version

exit codes: 0 done, 1 a bug or a failed run, 2 a mistake in what was asked for
"""

#: what `consensus list` shows -> the config group that holds it
LISTS = {
    "models": "model",
    "datasets": "dataset",
    "metrics": "metrics",
    "criteria": "criterion",
    "attacks": "attacks",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with the given words (the process's own unless given) and returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(HELP)
        return 0
    if words[0] == "--version":
        sys.stdout.write(f"consensus {__version__}\n")
        return 0
    try:
        if words[0] not in COMMANDS:
            raise unknown_name("command", words[0], COMMANDS)
        return COMMANDS[words[0]](words[1:])
    except UserError as error:
        tell(error)
        return 2


def _run(words: list[str]) -> int:
    from consensus_cli.launch import launch

    return launch(words)


def _list(words: list[str]) -> int:
    if len(words) != 1 or words[0] not in LISTS:
        raise unknown_name("list", " ".join(words), LISTS)
    from consensus_cli.config import choices

    options = choices(LISTS[words[0]])
    width = max(len(name) for name in options)
    for name, description in options.items():
        sys.stdout.write(f"{name:<{width}}  {description}\n")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {"run": _run, "list": _list}
