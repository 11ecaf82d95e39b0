"""`consensus run`: checks every run that was asked for, then lets Hydra start them, here or where a launcher says."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from consensus_cli import conf_files, config, launchers
from consensus_cli.composition import check_overrides, compose_runs, explain, opened, to_run_config
from consensus_cli.errors import RunFailedError, UserError, tell
from consensus_cli.startup import lasting_imports

#: packages whose exceptions, in a sweep, say that they lost a run's process
_LAUNCHING = ("joblib", "submitit", "ray")


def launch(words: list[str], screen_kind: str) -> int:
    """Runs what the words of `consensus run` ask for, Hydra's own flags included, on a screen of this kind.

    Raises:
        UserError: a mistake in any of the runs, before the first one starts.
    """
    flags = get_args_parser().parse_args(words)
    only_shows = flags.help or flags.hydra_help or flags.cfg or flags.info or flags.shell_completion
    own_files = flags.config_name is not None or flags.config_path is not None
    if flags.cfg and flags.multirun:
        raise UserError("--cfg shows one configuration, a sweep has several", "leave -m out")
    if flags.cfg and not own_files:
        # The values may be incomplete: what is missing is one of the things to look up.
        # A launcher's settings can be looked up without a sweep.
        check_overrides(flags.overrides, multirun=True, searchpath=flags.config_dir)
    if not only_shows and not own_files:
        runs = compose_runs(flags.overrides, multirun=flags.multirun, searchpath=flags.config_dir)
        with lasting_imports():
            from consensus_cli import preflight

        for run in runs:
            preflight.check(run)
    config.register()
    launchers.register()
    try:
        return _sweep(flags, screen_kind) if flags.multirun and not only_shows else _run(words, screen_kind)
    except SystemExit as stop:
        return int(stop.code or 0)
    except (HydraException, OmegaConfBaseException) as error:
        if only_shows:
            raise explain(error) from error
        raise


def _run(words: list[str], screen_kind: str) -> int:
    # Hydra would print its own text and exit with 1; with this it lets exceptions through.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = ["consensus run", *map(opened, words)]
    hydra.main(config_path=str(conf_files.config_dir()), config_name="config", version_base="1.3")(
        _job_on(screen_kind)
    )()
    return 0


def _sweep(flags: Namespace, screen_kind: str) -> int:
    """Starts every run of a sweep and tells, at its end, which failed and why: exit code 1 if any did.

    `hydra.main` would keep the results to itself; they are the one way back from another process or machine.
    """
    overrides = [*map(opened, flags.overrides), "hydra.mode=MULTIRUN"]
    if flags.config_dir:
        overrides.append(f"hydra.searchpath=[file://{flags.config_dir}]")
    folder = Path(flags.config_path or conf_files.config_dir()).resolve()
    with hydra.initialize_config_dir(str(folder), job_name="consensus", version_base="1.3"):
        started = GlobalHydra.instance().hydra
        assert started is not None
        try:
            job = _job_on(screen_kind)
            batches: list[list[JobReturn]] = started.multirun(flags.config_name or "config", job, overrides)
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in _LAUNCHING:
                raise
            sys.stderr.write(f"error: a run's process ended before the run did: {_one_line(error)}\n")
            sys.stderr.write("hint: the same command again starts what is missing; results.csv has what is done\n")
            return 1
    failed = [result for batch in batches for result in batch if result.return_value is not None]
    for result in failed:
        sys.stderr.write(f"failed: {shlex.join(result.overrides or ())} ({result.return_value})\n")
    return 1 if failed else 0


def _job_on(screen_kind: str) -> Callable[[DictConfig], str | None]:
    def start(composed: DictConfig) -> str | None:
        return run_job(composed, screen_kind)

    return start


def run_job(composed: DictConfig, screen_kind: str) -> str | None:
    """One run, in whatever process a launcher starts it; returns why it failed, None if it did not.

    In a sweep a run that fails leaves its row, and the next one starts.
    """
    with lasting_imports():
        from consensus_cli import pipeline
        from consensus_cli.screen import open_screen

    hydra_config = HydraConfig.get()
    overrides, sweeping = list(hydra_config.overrides.task), hydra_config.mode == RunMode.MULTIRUN
    # Launchers other than Hydra's own run several jobs at once.
    alone = hydra_config.launcher._target_.endswith(".BasicLauncher")
    try:
        run_config = to_run_config(composed)
        run_config.if_done = run_config.if_done or ("skip" if sweeping else "rerun")
        with open_screen(screen_kind, alone=alone) as screen:
            pipeline.run(run_config, overrides, screen)
    except (UserError, RunFailedError) as error:
        # Told here: Hydra would put a text of its own before it.
        tell(error)
        if not sweeping:
            raise SystemExit(2 if isinstance(error, UserError) else 1) from error
        return _one_line(error)
    except Exception as error:
        if not sweeping:
            raise
        traceback.print_exc()
        return f"{type(error).__name__}: {_one_line(error)}"
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
