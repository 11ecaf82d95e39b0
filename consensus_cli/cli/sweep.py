"""`consensus run`: checks every run that was asked for, then lets Hydra start them, here or where a launcher says."""

from __future__ import annotations

import shlex
import sys
import traceback
from argparse import Namespace
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from consensus_cli.cli.fast_imports import lasting_imports
from consensus_cli.config.composition import compose_runs, hydra_started, to_run_config
from consensus_cli.config.conf_files import Origin
from consensus_cli.config.mistakes import COMPOSING, explain, quoted
from consensus_cli.config.overrides import check_overrides, opened
from consensus_cli.config.schema import RunConfig
from consensus_cli.errors import NEEDS_LESS_MEMORY, ToldError, UserError, described, memory_told, one_line, tell

if TYPE_CHECKING:
    from consensus_cli.data.share import Share
    from consensus_cli.experiment.inputs import KeptImages

#: packages whose exceptions, in a sweep, say that they lost a run's process
_LAUNCHING = ("joblib", "submitit", "ray")


def launch(asked: Namespace) -> int:
    """Runs, or shows, what `consensus run` was asked for, and returns the exit code.

    Raises:
        UserError: a mistake in any of the runs, before the first one starts.
    """
    origin = Origin.given(asked.config_path, asked.config_name, asked.config_dir)
    share: Share | None = asked.share
    if asked.cfg or asked.info:
        if share is None or share.leads:
            _show(asked, origin)
        return 0
    runs = _checked_runs(asked, origin) if share is None else share.agree(lambda: _checked_runs(asked, origin))
    if share is not None and not share.leads:
        return _follow(runs, sweeping=asked.multirun)
    job = _Job(asked.screen, asked.debug)
    return _sweep(asked, origin, runs, job) if asked.multirun else _run(asked, origin, job)


def _checked_runs(asked: Namespace, origin: Origin) -> list[RunConfig]:
    if asked.share is not None and any(word.startswith("hydra/launcher=") for word in asked.settings):
        raise UserError("a job of several processes cannot start others", "leave out hydra/launcher, or torchrun")
    runs = compose_runs(asked.settings, multirun=asked.multirun, origin=origin)
    with lasting_imports():
        from consensus_cli.experiment import checks

    for run in runs:
        checks.check(run)
    return runs


def _follow(runs: list[RunConfig], *, sweeping: bool) -> int:
    """Does this process's part of the runs that Hydra starts in the first process of the job."""
    from consensus_cli.experiment import pipeline
    from consensus_cli.screen import open_screen

    kept: KeptImages = {}
    for config in runs:
        config.if_done = config.if_done or ("skip" if sweeping else "rerun")
        try:
            with open_screen("none") as screen:
                pipeline.run(config, (), screen, kept)
        except ToldError as error:
            if not (sweeping and error.shared):
                raise
    return 0


def _show(asked: Namespace, origin: Origin) -> None:
    """Prints what Hydra would run with, or how it got there; the values may be incomplete or out of range.

    What is missing is one of the things to look up, and a launcher's settings can be looked up without a sweep.
    """
    check_overrides(asked.settings, multirun=True, own_files=origin.own)
    words = [*map(opened, asked.settings), *origin.searchpath]
    try:
        with hydra_started(origin) as started:
            if asked.info:
                started.show_info(asked.info, origin.name, words)
                return
            composed = hydra.compose(origin.name, words, return_hydra_config=asked.cfg != "job")
        package = asked.package or ("hydra" if asked.cfg == "hydra" else None)
        node = composed if package is None else OmegaConf.select(composed, package)
        if node is None:
            raise UserError(f"package '{package}' not found", "name a node, such as model or hydra.launcher")
        text = OmegaConf.to_yaml(node, resolve=asked.resolve) if OmegaConf.is_config(node) else f"{node}\n"
    except COMPOSING as error:
        raise explain(error) from error
    sys.stdout.write(f"# @package {package}\n{text}" if package else text)


def _run(asked: Namespace, origin: Origin, job: _Job) -> int:
    with hydra_started(origin) as started:
        try:
            started.run(origin.name, job, [*map(opened, asked.settings), *origin.searchpath])
        except SystemExit as stop:
            return int(stop.code or 0)
        except Exception as error:
            if error is job.raised:
                raise
            raise _before_the_job(error) from error
    return 0


def _sweep(asked: Namespace, origin: Origin, runs: list[RunConfig], job: _Job) -> int:
    """Starts every run of a sweep, then shows which failed and why: exit code 1 if any did.

    The results of the runs are the one way back from another process or machine.
    """
    overrides = [*map(opened, asked.settings), *origin.searchpath, "hydra.mode=MULTIRUN", *_sweep_folder(asked, runs)]
    with hydra_started(origin) as started:
        try:
            batches: list[list[JobReturn]] = started.multirun(origin.name, job, overrides)
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in _LAUNCHING:
                raise _before_the_job(error) from error
            sys.stderr.write(f"error: a run's process ended before the run did: {one_line(error)}\n")
            sys.stderr.write("hint: the same command again starts what is missing; results.csv has what is done\n")
            return 1
    failed = [result for batch in batches for result in batch if result.return_value is not None]
    for result in failed:
        sys.stderr.write(f"failed: {shlex.join(result.overrides or ())} ({result.return_value})\n")
    return 1 if failed else 0


def _sweep_folder(asked: Namespace, runs: list[RunConfig]) -> list[str]:
    """Returns the words that keep Hydra from making a folder named `~`: it takes the output folder as it was typed."""
    chosen = any(word.startswith("hydra.sweep.dir=") for word in asked.settings)
    if chosen or not any("output_dir=" in word and "~" in word for word in asked.settings):
        return []
    return [quoted("hydra.sweep.dir", f"{runs[0].output_dir}/multirun/${{now:%Y-%m-%d_%H-%M-%S-%f}}")]


def _before_the_job(error: Exception) -> UserError:
    """Returns the mistake that kept Hydra from starting a run: its own settings, or a folder it cannot make.

    Raises:
        Exception: the error itself, where it is a bug of ours.
    """
    hint = "check the settings that begin with hydra, and output_dir; --debug shows the traceback"
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return UserError(f"cannot make '{error.filename}': {error.strerror}", hint)
    if isinstance(error, COMPOSING):
        return explain(error)
    if "consensus_cli" in traceback.extract_tb(error.__traceback__)[-1].filename:
        raise error
    return UserError(f"Hydra raised {described(error)}", hint)


class _Job:
    """What Hydra calls for each run, in whatever process a launcher starts it."""

    def __init__(self, screen_kind: str, debug: bool) -> None:
        self.raised: Exception | None = None
        self._screen_kind = screen_kind
        self._debug = debug
        # Runs of a sweep in one process that read the same images load them once.
        self._kept: KeptImages = {}

    def __call__(self, composed: DictConfig) -> str | None:
        try:
            return run_job(composed, self._screen_kind, self._kept, debug=self._debug)
        except Exception as error:
            self.raised = error
            raise


def run_job(
    composed: DictConfig, screen_kind: str, kept: KeptImages | None = None, *, debug: bool = False
) -> str | None:
    """One run, in whatever process a launcher starts it; returns why it failed, None if it did not.

    In a sweep a run that fails leaves its row, and the next one starts.
    """
    with lasting_imports():
        from consensus_cli.experiment import pipeline
        from consensus_cli.experiment.distributed import speaks, world
        from consensus_cli.screen import open_screen

    hydra_config = HydraConfig.get()
    overrides, sweeping = list(hydra_config.overrides.task), hydra_config.mode == RunMode.MULTIRUN
    # Launchers other than Hydra's own run several jobs at once.
    alone = hydra_config.launcher._target_.endswith(".BasicLauncher")
    try:
        run_config = to_run_config(composed)
        run_config.if_done = run_config.if_done or ("skip" if sweeping else "rerun")
        with open_screen(screen_kind, alone=alone) as screen, memory_told(NEEDS_LESS_MEMORY):
            pipeline.run(run_config, overrides, screen, kept)
    except ToldError as error:
        # Shown here: Hydra would put a text of its own before it.
        if speaks(error):
            tell(error, debug=debug)
        # In a job the others can go on with the next run only if they have all left this one.
        if not sweeping or (world() > 1 and not error.shared):
            raise SystemExit(2 if isinstance(error, UserError) else 1) from error
        return one_line(error)
    except Exception as error:
        if not sweeping:
            raise
        traceback.print_exc()
        if world() > 1:
            # The others may be anywhere in this run: no next one can begin together.
            raise SystemExit(1) from error
        return described(error)
    return None
