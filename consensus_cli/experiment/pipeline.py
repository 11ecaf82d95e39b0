"""The run is a line: original, then score, prune and fine-tune until the ratio is reached, evaluate, record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from consensus_cli.config.schema import RunConfig
from consensus_cli.experiment import announce, distributed, inputs
from consensus_cli.experiment.controls import TRANSFERRED, asked
from consensus_cli.experiment.goals import check_attainable
from consensus_cli.experiment.prepare import Prepared, prepare
from consensus_cli.experiment.row import Row, settle
from consensus_cli.experiment.session import Session, find_earlier, open_session, reopen
from consensus_cli.experiment.steps import Steps
from consensus_cli.experiment.threads import restored
from consensus_cli.experiment.transfer import carried_over, with_head
from consensus_cli.models.classifier import Classifier
from consensus_cli.screen import Screen
from consensus_cli.storage.identity import Identity, is_done
from consensus_cli.storage.rundir import RunDir, output_dir_of
from consensus_cli.storage.state import RunState


def run(config: RunConfig, overrides: Sequence[str], screen: Screen, kept: inputs.KeptImages | None = None) -> Row:
    """Prunes one network as configured, and returns the row written to `results.csv`; of several ratios the last.

    Args:
        config: everything that determines the run; with `if_done=skip` a finished run of the same configuration is
            not repeated, and an unfinished one continued.
        overrides: the words that led to it, for the row.
        screen: where progress and results are shown.
        kept: what keeps the images from one run of a sweep to the next.

    Raises:
        UserError: the configuration, or a file it names, is wrong; nothing has been written then.
        RunFailedError: memory, disk or training gave out; the row says so.
    """
    share = distributed.join()
    config = inputs.with_images_there_are(config, screen)
    read = share.agree(lambda: inputs.load(config, screen, kept))

    def earlier() -> RunDir | None:
        return find_earlier(config, read.hashes) if config.if_done == "skip" else None

    known, done = share.lead(lambda: _with_state(earlier()))
    if known is not None and done:
        return share.lead(lambda: _done_already(known, Path(config.output_dir), screen))
    return _line(config, read, tuple(overrides), known, screen)


def resume(run_dir: Path, screen: Screen) -> Row:
    """Continues a run where it stopped, from its directory and what it reads; otherwise as `run`."""
    share = distributed.join()
    known, done = share.lead(lambda: _with_state(RunDir.open(run_dir)))
    if known is not None and done:
        return share.lead(lambda: _done_already(known, output_dir_of(known), screen))
    config, files = share.lead(lambda: reopen(run_dir))
    read = share.agree(lambda: inputs.load(config, screen))
    share.lead(lambda: Identity.read(files).check_inputs(read.hashes, files))
    return _line(config, read, (), files, screen)


@restored()
def _line(
    config: RunConfig, read: inputs.Inputs, overrides: tuple[str, ...], earlier: RunDir | None, screen: Screen
) -> Row:
    share = distributed.join()
    prepared = share.agree(lambda: prepare(config, screen, read.images))
    if earlier is None:
        share.lead(lambda: check_attainable(prepared))
    with open_session(config, read.hashes, overrides, earlier, share) as session:
        steps = Steps(prepared, session.state, share, screen, session.kept_training(screen))
        goal = share.agree(lambda: carried_over(prepared, read.target))
        steps.know_costs(session.files if share.leads else None)
        with steps.tracking(session.files.path):
            announce.show_header(screen, prepared, session)
            original = session.saved_original(prepared) or steps.original()
            network = session.saved_network(prepared) or session.begin(prepared, original)
            for ratio in config.ratios:
                while not steps.reached(ratio):
                    steps.measure_last(ratio)
                    session.save_measured(network)
                    ranking = steps.score(network, original)
                    steps.prune(network, original, ranking, ratio)
                    steps.fine_tune(network, original)
                    session.save(network)
                session.save_measured(network)
                row = session.recorded(ratio, screen) or _finish(session, steps, ratio, original, network, goal=goal)
                announce.show_comparison(screen, row)
    return row


def _finish(
    session: Session, steps: Steps, ratio: float, original: Classifier, network: Classifier, *, goal: Prepared
) -> Row:
    """Fine-tunes a copy of the network for the last time, measures it, and returns the row it recorded.

    `goal` is what the run works on, or with `transfer` what both networks are fine-tuned and measured on.
    """
    steps.share.lead(lambda: steps.check_not_passed(ratio))
    going, prepared = network, goal
    if goal is not steps.prepared:
        steps = steps.on(goal)
        original, network = _transferred(session, steps, original, going), with_head(goal, going, session.state)
    pruned = session.saved_pruned(prepared, ratio)
    if pruned is None:
        pruned = steps.fine_tune_finally(network, original, ratio)
        session.save_pruned(prepared, ratio, original, going, pruned)
    for control in asked(prepared.config.controls):
        row = session.recorded(ratio, steps.screen, control)
        row = row or _control(session, steps, ratio, original, going, pruned=pruned, control=control)
        announce.show_comparison(steps.screen, row)
    columns, right = steps.evaluate(original, pruned, ratio)
    session.certify(prepared, ratio, pruned, columns)
    row = session.record(ratio, columns, right, steps.screen)
    steps.track_row(row)
    return row


def _control(
    session: Session,
    steps: Steps,
    ratio: float,
    original: Classifier,
    network: Classifier,
    *,
    pruned: Classifier,
    control: str,
) -> Row:
    """Trains what a control is of, measures it in the pruned network's place, and returns the row it recorded."""
    trained = session.saved_pruned(steps.prepared, ratio, control)
    if trained is None:
        trained = steps.train_control(control, original, pruned, ratio)
        session.save_pruned(steps.prepared, ratio, original, network, trained, control=control)
    columns, right = steps.evaluate(original, trained, ratio, control)
    session.certify(steps.prepared, ratio, trained, columns, control)
    return session.record(ratio, columns, right, steps.screen, control)


def _transferred(session: Session, steps: Steps, original: Classifier, network: Classifier) -> Classifier:
    """Returns the original network fine-tuned on the other images, trained once for all ratios."""
    prepared, ratio = steps.prepared, steps.config.ratios[-1]
    trained = session.saved_pruned(prepared, ratio, TRANSFERRED)
    if trained is None:
        begun = with_head(prepared, original, RunState())
        trained = steps.train_control(TRANSFERRED, begun, begun, ratio)
        session.save_pruned(prepared, ratio, original, network, trained, control=TRANSFERRED)
    return trained


def _with_state(files: RunDir | None) -> tuple[RunDir | None, bool]:
    """Returns a run directory and whether its run is done."""
    return files, files is not None and is_done(files)


def _done_already(files: RunDir, output_dir: Path, screen: Screen) -> Row:
    screen.line(f"run {files.path.name} is done already: see {files.path}, or repeat it with if_done=rerun")
    return settle(files, output_dir, screen.warning)
