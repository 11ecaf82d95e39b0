"""`consensus run`: checks every run that was asked for, then lets Hydra start them."""

from __future__ import annotations

import math
import os
import shlex
import sys
import traceback
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from consensus_cli import config
from consensus_cli.composition import compose_runs, to_run_config
from consensus_cli.errors import RunFailedError, UserError, tell


def launch(words: list[str]) -> int:
    """Runs what the words of `consensus run` ask for, Hydra's own flags included.

    Raises:
        UserError: a mistake in any of the runs, before the first one starts.
    """
    flags = get_args_parser().parse_args(words)
    only_shows = flags.help or flags.hydra_help or flags.cfg or flags.info or flags.shell_completion
    if not only_shows and flags.config_name is None and flags.config_path is None:
        runs = compose_runs(flags.overrides, multirun=flags.multirun, searchpath=flags.config_dir)
        from consensus_cli import preflight

        for run in runs:
            preflight.check(run)
    # Hydra would print its own text and exit with 1; with this it lets exceptions through.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    config.register()
    sys.argv = ["consensus run", *words]
    failed: list[str] = []
    start = hydra.main(config_path=str(config.config_dir()), config_name="config", version_base="1.3")

    def job(composed: DictConfig) -> float:
        return _job(composed, failed)

    try:
        start(job)()
    except SystemExit as stop:
        return int(stop.code or 0)
    for told in failed:
        sys.stderr.write(f"failed: {told}\n")
    return 1 if failed else 0


def _job(composed: DictConfig, failed: list[str]) -> float:
    """One run; its result, the accuracy of the pruned network, is what a sweeper may optimise.

    In a sweep a run that fails leaves its row, and the next one starts.
    """
    from consensus_cli import pipeline
    from consensus_cli.screen import Screen

    hydra_config = HydraConfig.get()
    overrides, sweeping = list(hydra_config.overrides.task), hydra_config.mode == RunMode.MULTIRUN
    try:
        run_config = to_run_config(composed)
        run_config.if_done = run_config.if_done or ("skip" if sweeping else "rerun")
        row: dict[str, Any] = pipeline.run(run_config, overrides, Screen())
    except (UserError, RunFailedError) as error:
        # Told here: Hydra would put a text of its own before it.
        tell(error)
        if not sweeping:
            raise SystemExit(2 if isinstance(error, UserError) else 1) from error
    except Exception:
        if not sweeping:
            raise
        traceback.print_exc()
    else:
        return float(row["accuracy_pruned_pct"])
    failed.append(shlex.join(overrides))
    return math.nan
