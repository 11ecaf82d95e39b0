"""A session of a run: from its beginning, or from where an earlier one stopped, to its end or interruption.

Every process of a job has one; rank 0 alone holds the run directory, reads and writes.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from torch import Tensor

from consensus_cli.config.composition import read_config
from consensus_cli.config.schema import RunConfig
from consensus_cli.data.share import Share
from consensus_cli.errors import UserError
from consensus_cli.experiment import certificate, controls, limits, row
from consensus_cli.experiment.inputs import located
from consensus_cli.experiment.kept_training import Clock, KeptTraining
from consensus_cli.experiment.prepare import Prepared
from consensus_cli.experiment.run_hash import run_hash
from consensus_cli.experiment.signals import Stopper
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone
from consensus_cli.models.matching import entries
from consensus_cli.models.weights import load_into
from consensus_cli.pruning.replacement import forms_of, install_forms
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.report.attribution import attribution_columns
from consensus_cli.report.runs import load
from consensus_cli.screen import Screen
from consensus_cli.storage import checkpoint
from consensus_cli.storage.answers import write_answers
from consensus_cli.storage.atomic import remove_partial_files, write_atomic
from consensus_cli.storage.identity import Identity, find, is_done
from consensus_cli.storage.rundir import RunDir, output_dir_of
from consensus_cli.storage.scores import read_all, write_scores
from consensus_cli.storage.state import RunState, read_state

_LOCK_TIMEOUT_S = 30.0

Weights = dict[str, Tensor]


@dataclass
class Session:
    """A run in work, held by this job alone.

    Attributes:
        config: everything that determines the run.
        identity: what stays the same over all sessions.
        files: the run directory.
        state: where the run stands; the phases of the run change it.
        saved: the weights that an earlier session left, of the original network and of that with the blocks in
            `state.removed` gone; None where the run begins.
        share: this process among those of the job.
        stopper: lets signals end the session.
        hashes: ratio -> hash of the run at that ratio alone, from the start: the weights may be overwritten meanwhile.
        clock: wall-clock seconds of all sessions.
        measured: columns of the last row, once they are measured: a run that fails then keeps them.
    """

    config: RunConfig
    identity: Identity
    files: RunDir
    state: RunState
    saved: tuple[Weights, Weights] | None
    share: Share
    stopper: Stopper
    hashes: Mapping[float, str]
    clock: Clock
    measured: row.Row = field(default_factory=dict)
    _measurements: int = field(init=False)

    def __post_init__(self) -> None:
        self._measurements = len(self.state.measured) + len(self.state.besides)

    def saved_original(self, prepared: Prepared) -> Classifier | None:
        """Returns the original network as an earlier session left it; None where the run begins."""
        return (
            None
            if self.saved is None
            else _network(prepared, RunState(), self.saved[0], self.files.baseline_checkpoint)
        )

    def saved_network(self, prepared: Prepared) -> Classifier | None:
        """Returns the network to go on with as an earlier session left it; None where the run begins."""
        return None if self.saved is None else _network(prepared, self.state, self.saved[1], self.files.state)

    def kept_training(self, screen: Screen) -> KeptTraining:
        """Returns what keeps the trainings of this run between two saves."""
        return KeptTraining(self.files.trainings, self.clock, screen)

    def begin(self, prepared: Prepared, original: Classifier) -> Classifier:
        """Saves the original network and returns the copy of it that is pruned."""
        network = as_saved(prepared, original, RunState())
        if self.share.leads:
            checkpoint.save_baseline(self.files, original)
        self.save(network)
        return network

    def save_measured(self, network: Classifier) -> None:
        """Saves what was measured since the last save, while the network is still that of the state.

        What follows depends on it: measured again by a later session, it could come out otherwise.
        """
        if len(self.state.measured) + len(self.state.besides) != self._measurements:
            self.save(network)

    def save(self, network: Classifier) -> None:
        """Saves where the run stands, so that nothing up to here has to be done again."""
        if self.share.leads:
            with self.stopper.held_off():
                write_scores(self.files.scores, self.state.scores)
                self._write_state(network)

    def saved_pruned(self, prepared: Prepared, ratio: float, control: str = "") -> Classifier | None:
        """Returns the network after the final fine-tuning at a ratio, or a control's; None if it is to be made."""
        files = self._files(ratio, control)
        file = files.pruned_checkpoint
        # A file that somebody took away is made again.
        present = self.share.lead(lambda: file.is_file() and files.pruned_structure.is_file())
        if tuned_key(ratio, control) not in self.state.tuned or not present:
            return None
        maps, weights = self.share.lead(lambda: (checkpoint.read_maps(files), checkpoint.read_weights(file)))
        return _network(prepared, replace(controls.shape(control, self.state), maps=maps), weights, file)

    def save_pruned(
        self,
        prepared: Prepared,
        ratio: float,
        original: Classifier,
        network: Classifier,
        pruned: Classifier,
        *,
        control: str = "",
    ) -> None:
        """Saves the network after the final fine-tuning at a ratio, or that of a control.

        Args:
            prepared: what the run works on.
            ratio: one of the run's.
            original: the original network.
            network: the one with which the pruning goes on to larger ratios.
            pruned: the one that is measured.
            control: which control that is; empty for the run itself.
        """
        if not self.share.leads:
            return
        files, state = self._files(ratio, control), controls.shape(control, self.state)
        with self.stopper.held_off():
            if files != self.files:
                files.make()
                write_atomic(files.config, _yaml(replace(self.config, ratio=ratio)))
                checkpoint.save_baseline(files, original)
            checkpoint.save_pruned(
                files,
                pruned,
                prepared.spec,
                prepared.images.train.image_shape[0],
                state.removed,
                maps=forms_of(pruned.network, state.removed),
                classes=prepared.images.classes,
            )
            self._write_state(network)

    def recorded(self, ratio: float, screen: Screen, control: str = "") -> row.Row | None:
        """Returns the row at a ratio, or of a control, if an earlier session has written it, else None."""
        files = self._files(ratio, control)
        if files == self.files or not self.share.lead(lambda: is_done(files)):
            return None
        return self.share.lead(lambda: row.settle(files, Path(self.config.output_dir), screen.warning))

    def certify(
        self, prepared: Prepared, ratio: float, pruned: Classifier, columns: row.Row, control: str = ""
    ) -> None:
        """Writes the certificate that belongs to a row.

        Raises:
            RunFailedError: what is saved does not answer as what was measured, which a failed row keeps.
        """
        files = self._files(ratio, control)
        measured = columns | self._identity_columns(ratio, control)

        def check() -> None:
            images = certificate.checked_images(prepared.images.test, self.config.seed).to(prepared.device)
            with self.stopper.held_off():
                certificate.certify(files, measured, pruned, images)

        self.measured = columns if files == self.files else {}
        self.share.lead(check)

    def record(
        self, ratio: float, columns: row.Row, right: Mapping[str, Tensor], screen: Screen, control: str = ""
    ) -> row.Row:
        """Writes the row at a ratio, which it returns, and whether each network is right about each test image.

        With the last one the run is done; its controls are recorded before it.
        """
        return self.share.lead(lambda: self._record(ratio, columns, right, screen, control))

    def _record(
        self, ratio: float, columns: row.Row, right: Mapping[str, Tensor], screen: Screen, control: str
    ) -> row.Row:
        files = self._files(ratio, control)
        with self.stopper.held_off():
            write_answers(files, right)
            written = columns | self._identity_columns(ratio, control) | row.file_columns(files)
            if control:
                row.write(files, Path(self.config.output_dir), written)
                row.draw_summary(files, written, screen.warning)
                return written
            write_scores(files.scores, self.state.scores)
            if self.config.controls:
                written |= attribution_columns(load(Path(self.config.output_dir)), written, right)
            row.write(files, Path(self.config.output_dir), written)
            if files == self.files:
                self.files.state.unlink(missing_ok=True)
                self._forget_trainings()
            else:
                write_atomic(files.log, self.files.log.read_bytes())
                if self._is_as_alone(ratio):
                    replace(self.identity, config_hash=self.hashes[ratio]).write(files)
            row.draw_summary(files, written, screen.warning)
        return written

    def _is_as_alone(self, ratio: float) -> bool:
        """Whether the row at a ratio that is not the last is that of a run at this ratio alone."""
        # What is spread evenly depends on how much goes in the end.
        if self.config.criterion.name == "uniform":
            return False
        # Several blocks per removal, or the best set for each ratio, come by other removals.
        one_by_one = self.config.prune.step == 1 and self.config.criterion.per == "nothing"
        return one_by_one or ratio == self.config.ratios[0]

    @contextmanager
    def row_on_failure(self) -> Iterator[None]:
        """Leaves a row with the error if the body fails before the run is done, and lets it through."""
        try:
            yield
        except BaseException as error:
            # On a full disk the row cannot be written either; the error is shown all the same.
            with suppress(OSError):
                if not is_done(self.files):
                    failed = self.measured | self._identity_columns(self.config.ratios[-1])
                    row.write(self.files, Path(self.config.output_dir), failed | row.failure_columns(error))
            raise

    def _files(self, ratio: float, control: str = "") -> RunDir:
        """Returns where the row at a ratio goes: the run's own directory for the last one, else one beside it."""
        files = self.files if ratio == self.config.ratios[-1] else self.files.sibling(self.hashes[ratio])
        return files.control(control) if control else files

    def _write_state(self, network: Classifier) -> None:
        self.state.duration_s = self.clock.duration_s()
        try:
            self.state.write(self.files.state, network)
        except OSError:
            # The trainings may be what fills the disk.
            self._forget_trainings()
            self.state.write(self.files.state, network)
        self._forget_trainings()
        self._measurements = len(self.state.measured) + len(self.state.besides)

    def _forget_trainings(self) -> None:
        """Removes the trainings that were kept, once the state has what they led to."""
        shutil.rmtree(self.files.trainings, ignore_errors=True)

    def _identity_columns(self, ratio: float, control: str = "") -> row.Row:
        config = replace(self.config, ratio=ratio)
        columns = row.identity_columns(config, self.identity, self._files(ratio, control), self.clock.duration_s())
        return columns | ({"control_of": self._files(ratio).path.name} if control else {})


@contextmanager
def open_session(
    config: RunConfig, inputs: Mapping[str, str], overrides: tuple[str, ...], earlier: RunDir | None, share: Share
) -> Iterator[Session]:
    """Holds a run directory while the body works on the run, and records how that ends.

    Args:
        config: everything that determines the run.
        inputs: hashes of what it reads.
        overrides: the words that led to it.
        earlier: the directory of the run, begun before; None: a new one, or with `if_done=skip` one that another
            process has begun since.
        share: this process among those of the job.

    Raises:
        UserError: another process works on the run, or its state is damaged.
        RunFailedError: memory, disk or training gave out.
    """
    with ExitStack() as stack:
        files, identity, state, saved = share.lead(
            lambda: _read(stack.enter_context(_held(config, inputs, overrides, earlier)))
        )
        hashes = {ratio: run_hash(replace(config, ratio=ratio)) for ratio in config.ratios}
        stopper = Stopper(files.path)
        session = Session(config, identity, files, state, saved, share, stopper, hashes, Clock(state.duration_s))
        stack.enter_context(stopper.listening())
        stack.enter_context(limits.explained(files.path))
        if share.leads:
            stack.enter_context(log_into(files))
            stack.enter_context(session.row_on_failure())
        yield session


def tuned_key(ratio: float, control: str = "") -> str:
    """Returns the key in `RunState.tuned` of the row at a ratio, or of one of its controls."""
    return f"{ratio} {control}".strip()


def as_saved(prepared: Prepared, network: Classifier, state: RunState) -> Classifier:
    """Returns a network with the weights of another, as a stop and a return to its state would.

    Beside its weights a network may keep what it computed in an earlier pass. What goes on from here must not depend
    on that, or a run that was stopped would end otherwise than one that was not.

    Args:
        prepared: what the run works on.
        network: the network of this state; left as it is.
        state: which blocks are gone, and what stands in their place.
    """
    return _network(prepared, state, entries(network.network), "the network")


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
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    except BaseException:
        logger.exception("the run did not end")
        raise
    finally:
        logger.setLevel(level)
        logger.propagate = propagates
        logger.removeHandler(handler)
        with suppress(OSError):
            handler.close()


def new_run_dir(config: RunConfig, now: datetime) -> RunDir:
    """Makes a run directory with the resolved configuration in it."""
    files = RunDir.create(Path(config.output_dir), run_hash(config), now)
    write_atomic(files.config, _yaml(config))
    return files


class _LogFile(logging.FileHandler):
    """Is silent where a line cannot be written: a full disk is reported once, by the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass


@contextmanager
def _held(
    config: RunConfig, inputs: Mapping[str, str], overrides: tuple[str, ...], earlier: RunDir | None
) -> Iterator[RunDir]:
    """Yields the run's directory, new or not, which no other job works on meanwhile."""
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(output_dir):
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


@contextmanager
def _one_at_a_time(output_dir: Path) -> Iterator[None]:
    """Lets one process of all machines look for a run directory or make one.

    Raises:
        UserError: another one has been doing that for too long.
    """
    lock = FileLock(output_dir / ".runs.lock", timeout=_LOCK_TIMEOUT_S)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"'{lock.lock_file}' is still locked by another process after {_LOCK_TIMEOUT_S:g} s",
            "see whether a run hangs, or choose another folder with output_dir=PATH",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _read(files: RunDir) -> tuple[RunDir, Identity, RunState, tuple[Weights, Weights] | None]:
    identity = Identity.read(files)
    if not files.state.is_file():
        return files, identity, RunState(), None
    state, weights = read_state(files.state, read_all(files.scores))
    return files, identity, state, (checkpoint.read_weights(files.baseline_checkpoint), weights)


def _network(prepared: Prepared, state: RunState, weights: Mapping[str, Tensor], source: Path | str) -> Classifier:
    network = clone(prepared.original)
    remove_blocks(network.network, state.removed)
    install_forms(network.network, state.maps)
    load_into(network.network, weights, str(source))
    return network


def _busy(files: RunDir) -> UserError:
    return UserError(
        f"run '{files.path.name}' is in use by another process, or has just ended",
        "wait for it to finish; if_done=rerun starts a second run of this configuration",
    )


def _yaml(config: RunConfig) -> str:
    return yaml.safe_dump(asdict(config), sort_keys=False)
