"""One sitting of a run: from its beginning, or from where an earlier sitting stopped, to its end or the next stop."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from consensus_cli.config.composition import read_config
from consensus_cli.config.schema import RunConfig
from consensus_cli.errors import UserError
from consensus_cli.evaluation.pair import Columns
from consensus_cli.experiment import limits
from consensus_cli.experiment.inputs import located
from consensus_cli.experiment.record import Record, draw_summary, run_hash, save_scores, settle
from consensus_cli.experiment.signals import Stopper
from consensus_cli.experiment.steps import Steps
from consensus_cli.models.classifier import Classifier
from consensus_cli.storage import checkpoint, state
from consensus_cli.storage.atomic import remove_partial_files, write_atomic
from consensus_cli.storage.identity import Identity, find, is_done
from consensus_cli.storage.rundir import RunDir, output_dir_of
from consensus_cli.storage.state import State

_LOCK_TIMEOUT_S = 30.0


@dataclass
class Sitting:
    """A run directory in work, held by this process alone.

    Attributes:
        config: everything that determines the run.
        identity: what stays the same over all sittings.
        files: the run directory.
        state: where the run stood when it was last saved.
        stopper: lets signals end the sitting.
        earlier_s: wall-clock seconds of earlier sittings.
        began_s: reading of `time.perf_counter` at the start of this one.
        hashes: ratio -> hash of the run at that ratio alone, from the start: the weights may be overwritten meanwhile.
    """

    config: RunConfig
    identity: Identity
    files: RunDir
    state: State
    stopper: Stopper
    earlier_s: float
    began_s: float
    hashes: Mapping[float, str]

    @property
    def duration_s(self) -> float:
        """Wall-clock seconds of all sittings; what a killed one did after its last save does not count."""
        return self.earlier_s + time.perf_counter() - self.began_s

    def networks(self, steps: Steps) -> tuple[Classifier, Classifier]:
        """Returns the unpruned network and the one to go on with, as an earlier sitting left them or from the start."""
        fresh = steps.prepared.fresh
        if self.files.state.is_file():
            self.state.put_into(steps)
            original = checkpoint.load_baseline(self.files, fresh)
            network = state.read_network(self.files.state, fresh, self.state.removed)
            steps.screen.line(f"resumed: {len(steps.removed)} blocks are gone, {self.earlier_s:.0f} s of work are kept")
            return original, network
        original = steps.baseline()
        network = state.copied(original, fresh, [])
        checkpoint.save_baseline(self.files, original)
        self.save(steps, network)
        return original, network

    def save(self, steps: Steps, network: Classifier) -> None:
        """Saves where the run stands, so that nothing up to here has to be done again."""
        with self.stopper.held_off():
            save_scores(self.files, steps.scores)
            self.state.note(steps)
            self.state.duration_s = self.duration_s
            self.state.write(self.files.state, network)

    def record(self, ratio: float) -> Record:
        """Returns where the row at a ratio goes: the run's own directory for the last one, else one beside it."""
        config, files = self.config, self.files
        if ratio != config.ratios[-1]:
            config = replace(config, ratio=ratio)
            files = files.sibling(self.hashes[ratio])
        return Record(config, self.identity, files)

    def tuned(self, ratio: float, steps: Steps) -> Classifier | None:
        """Returns the network after the final fine-tuning at a ratio and sets `steps` to there; None if not saved."""
        stages = self.state.tuned.get(str(ratio))
        if stages is None:
            return None
        checkpoint_file = self.record(ratio).files.pruned_checkpoint
        # A file that somebody took away is made again.
        if not checkpoint_file.is_file():
            return None
        steps.stages.stages = copy.deepcopy(stages)
        return state.read_network(checkpoint_file, steps.prepared.fresh, steps.removed)

    def save_tuned(
        self, ratio: float, steps: Steps, original: Classifier, network: Classifier, tuned: Classifier
    ) -> None:
        """Saves the network after the final fine-tuning at a ratio.

        Args:
            ratio: one of the run's.
            steps: what led to `tuned`.
            original: the unpruned network.
            network: the one with which the pruning goes on to larger ratios.
            tuned: the one that is measured.
        """
        files = self.record(ratio).files
        with self.stopper.held_off():
            if files != self.files:
                files.make()
                write_atomic(files.config, _yaml(replace(self.config, ratio=ratio)))
                checkpoint.save_baseline(files, original)
            checkpoint.save_pruned(
                files, tuned, steps.prepared.spec, steps.removed, classes=steps.prepared.images.classes
            )
            self.state.tuned[str(ratio)] = copy.deepcopy(steps.stages.stages)
            self.state.batch_sizes = dict(steps.fitting.sizes)
            self.state.threads_lowered = list(steps.prepared.threads.lowered)
            self.state.duration_s = self.duration_s
            self.state.write(self.files.state, network)

    def finish(self, ratio: float, steps: Steps, measured: Columns) -> dict[str, object]:
        """Writes the row at a ratio, which it returns; with the last one the run is done."""
        record = self.record(ratio)
        with self.stopper.held_off():
            row = record.save(steps, measured, self.duration_s)
            if record.files == self.files:
                self.files.state.unlink(missing_ok=True)
            else:
                write_atomic(record.files.log, self.files.log.read_bytes())
                # With several blocks per step, later ratios come by other steps than a run of their own would take.
                if self.config.prune.step == 1 or ratio == self.config.ratios[0]:
                    replace(self.identity, config_hash=self.hashes[ratio]).write(record.files)
            draw_summary(record.files, row, steps.screen.warning)
        return row

    def finished(self, ratio: float, steps: Steps) -> dict[str, object] | None:
        """Returns the row at a ratio if an earlier sitting has written it, else None."""
        files = self.record(ratio).files
        if files == self.files or not is_done(files):
            return None
        return settle(files, Path(self.config.output_dir), steps.screen.warning)

    @contextmanager
    def row_on_failure(self) -> Iterator[None]:
        """Leaves a row with the error if the body fails before the run is done, and lets it through."""
        try:
            yield
        except BaseException as error:
            # On a full disk the row cannot be written either; what failed is told all the same.
            with suppress(OSError):
                if not is_done(self.files):
                    self.record(self.config.ratios[-1]).save_failure(error, self.duration_s)
            raise


@contextmanager
def sit(
    config: RunConfig, inputs: Mapping[str, str], overrides: tuple[str, ...], earlier: RunDir | None
) -> Iterator[Sitting]:
    """Holds a run directory while the body works on the run, and records how that ends.

    Args:
        config: everything that determines the run.
        inputs: hashes of what it reads.
        overrides: the words that led to it.
        earlier: the directory of the run, begun before; None: a new one, or with `if_done=skip` one that another
            process has begun since.

    Raises:
        UserError: another process works on the run, or its state is damaged.
        RunFailedError: memory, disk or training gave out.
    """
    with ExitStack() as stack:
        files = stack.enter_context(_held(config, inputs, overrides, earlier))
        known = state.read(files.state) if files.state.is_file() else State()
        stopper = Stopper(files.path)
        hashes = {ratio: run_hash(replace(config, ratio=ratio)) for ratio in config.ratios}
        identity, began_s = Identity.read(files), time.perf_counter()
        sitting = Sitting(config, identity, files, known, stopper, known.duration_s, began_s, hashes)
        for context in (stopper.listening(), limits.explained(files.path), log_into(files), sitting.row_on_failure()):
            stack.enter_context(context)
        yield sitting


def reopen(run_dir: Path) -> tuple[RunConfig, RunDir]:
    """Returns the configuration of a run that was begun before, from its directory, which may come from someone else.

    Raises:
        UserError: there is no run that can be resumed, or what it reads is not where it was.
    """
    files = RunDir.open(run_dir)
    identity = Identity.read(files)
    output_dir = output_dir_of(files)
    config = located(read_config(files.config), identity.folder)
    if Path(config.output_dir).absolute() != output_dir:
        config = replace(config, output_dir=str(output_dir))
    if run_hash(config) != identity.config_hash:
        raise UserError(
            f"'{files.config}' is not what the run began with, or this version has other settings",
            "start the run anew: consensus run …",
        )
    return config, files


def find_earlier(config: RunConfig, inputs: Mapping[str, str]) -> RunDir | None:
    """Returns the directory of a run with this configuration on these inputs, finished or not; None without one."""
    return find(Path(config.output_dir), run_hash(config), inputs)


@contextmanager
def log_into(files: RunDir) -> Iterator[None]:
    """Appends the package's log to the run directory's while the body runs, and the traceback if it fails."""
    logger = logging.getLogger("consensus_cli")
    handler = _LogFile(files.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    except BaseException:
        logger.exception("the run did not end")
        raise
    finally:
        logger.removeHandler(handler)
        with suppress(OSError):
            handler.close()


def new_run_dir(config: RunConfig, now: datetime) -> RunDir:
    """Makes a run directory with the resolved configuration in it."""
    files = RunDir.create(Path(config.output_dir), run_hash(config), now)
    write_atomic(files.config, _yaml(config))
    return files


class _LogFile(logging.FileHandler):
    """Says nothing where a line cannot be written: on a full disk that is told once, by the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass


@contextmanager
def _held(
    config: RunConfig, inputs: Mapping[str, str], overrides: tuple[str, ...], earlier: RunDir | None
) -> Iterator[RunDir]:
    """Yields the run's directory, new or not, which no other process works on meanwhile."""
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(output_dir / ".runs.lock", timeout=_LOCK_TIMEOUT_S):
        if earlier is None and config.if_done == "skip":
            earlier = find_earlier(config, inputs)
        now = datetime.now(UTC)
        files = earlier or new_run_dir(config, now)
        lock = FileLock(files.lock)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise _busy(files) from None
        if earlier is None:
            began = now.isoformat(timespec="seconds")
            Identity(run_hash(config), began, overrides, inputs, str(Path.cwd())).write(files)
    try:
        if is_done(files):
            raise _busy(files)
        for file in files.files():
            remove_partial_files(file)
        yield files
    finally:
        lock.release()


def _busy(files: RunDir) -> UserError:
    return UserError(
        f"another process works on run '{files.path.name}', or has just ended it",
        "let it end; if_done=rerun would begin a second run of this configuration",
    )


def _yaml(config: RunConfig) -> str:
    return yaml.safe_dump(asdict(config), sort_keys=False)
