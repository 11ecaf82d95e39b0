"""The phases of a run, each with its arguments taken from the configuration; the library below knows none."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from consensus_cli import training
from consensus_cli.config.schema import RunConfig
from consensus_cli.data.share import Share
from consensus_cli.errors import UserError, described
from consensus_cli.evaluation.accuracy import accuracy_pct, predict
from consensus_cli.evaluation.cost.block_costs import Costs
from consensus_cli.evaluation.cost.energy import Consumption, EnergyMeter, Reading
from consensus_cli.evaluation.cost.quantities import MEASURED
from consensus_cli.evaluation.cost.savings import Conditions, Measured
from consensus_cli.experiment import controls, goals, kept_costs, recipes, row
from consensus_cli.experiment.batch_sizes import SCORING_BATCH_SIZE, Fitting
from consensus_cli.experiment.finetuning import Trainer
from consensus_cli.experiment.healer import Healer
from consensus_cli.experiment.inputs import code_hash
from consensus_cli.experiment.kept_training import KeptTraining
from consensus_cli.experiment.measuring import measure
from consensus_cli.experiment.original import cached
from consensus_cli.experiment.prepare import Prepared
from consensus_cli.experiment.session import as_saved, tuned_key
from consensus_cli.experiment.tracking import Tracker
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone
from consensus_cli.models.weights import serialize
from consensus_cli.pruning.choice import by_value
from consensus_cli.pruning.schedule import Schedule
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.scoring.ranking.consensus import Ranking
from consensus_cli.scoring.ranking.criteria import of_schedule
from consensus_cli.scoring.samples import Samples
from consensus_cli.scoring.score import rank_blocks
from consensus_cli.screen import Screen, events
from consensus_cli.storage.rundir import RunDir
from consensus_cli.storage.scores import score_table
from consensus_cli.storage.state import Phases, RunState

#: about so many images show how good the network is while the run goes on: a small part of a scoring's time
CHECKED_IMAGES = 256


class Steps:
    """A run under way: each phase changes the state, which the session saves.

    Attributes:
        prepared: what the run works on.
        state: where the run stands.
        share: this process among those of the job.
        screen: where progress is shown.
        kept: keeps the trainings between two saves of the state, in a run that can be resumed.
        tracker: where losses, accuracies and scores are logged beside the run directory.
    """

    def __init__(
        self, prepared: Prepared, state: RunState, share: Share, screen: Screen, kept: KeptTraining | None = None
    ) -> None:
        self.prepared, self.state, self.share, self.screen = prepared, state, share, screen
        self.kept = kept
        self.tracker = Tracker.none()
        self._costs: Costs | None = None
        self._fitting = Fitting(screen, alone=share.world == 1, sizes=state.batch_sizes)
        self._meter = EnergyMeter(prepared.config.evaluate.country, device=prepared.device)
        state.threads_lowered += prepared.threads.lowered
        prepared.threads.lowered = state.threads_lowered

    @property
    def config(self) -> RunConfig:
        """Everything that determines the run."""
        return self.prepared.config

    @property
    def _conditions(self) -> Conditions:
        prepared = self.prepared
        shape = prepared.images.test.image_shape
        return kept_costs.conditions(self.config, shape, prepared.device, self._meter, prepared.threads)

    def original(self) -> Classifier:
        """Returns the original network with its weights: as given, from the cache, or trained now.

        Given weights without the head are where the training starts.
        """
        model = clone(self.prepared.original)
        if self.prepared.is_trained:
            self.screen.line(f"baseline: weights of {self.config.model.weights}")
        else:
            with self._phase("baseline", self.state.phases):
                path, known = self._cached_or_trained(model)
            self.screen.line(f"baseline: {'reused' if known else 'trained, kept as'} {path}")
        self._show_accuracy(model)
        return model

    def on(self, prepared: Prepared) -> Steps:
        """Returns the same steps, with the same state, of what is prepared for the end of a run."""
        steps = copy.copy(self)
        steps.prepared = prepared
        return steps

    def reached(self, ratio: float) -> bool:
        """Returns whether enough blocks are gone for a ratio."""
        return self._schedule(ratio).reached(self.state.removed)

    def know_costs(self, files: RunDir | None) -> None:
        """Reads or measures what the network saves without each block, if that decides what goes, and keeps it.

        `files`: the run directory, of the process that has one.
        """
        per, prepared = self.config.criterion.per, self.prepared
        if per not in MEASURED:
            return

        def known() -> Costs:
            assert files is not None
            under = self._conditions
            kept = kept_costs.kept_path(Path(self.config.output_dir), prepared.spec, prepared.blocks, under)
            found = kept_costs.read(files.costs, [per]) or kept_costs.read(kept, [per])
            if found is None:
                with self._phase("measure", self.state.phases):
                    found = kept_costs.measured(prepared.original, prepared.blocks, under, [per], self.screen)
                kept_costs.write(found, kept)
            kept_costs.write(found, files.costs)
            return found

        self._costs = self.share.lead(known)

    def _schedule(self, ratio: float) -> Schedule:
        if self.config.prune.quantity not in MEASURED:
            return self.prepared.schedule(ratio)

        def enough(removed: Sequence[str]) -> bool:
            return bool(removed) and goals.is_reached(self.config.prune, ratio, self._measured(removed, ratio))

        return self.prepared.schedule(ratio, enough)

    def _measured(self, removed: Sequence[str], ratio: float | None = None) -> Measured:
        """Returns what the network costs without blocks, measured once, and for longer if that leaves a ratio open."""
        state, prune, key = self.state, self.config.prune, self._gone(removed)
        maps = {name: form for name, form in state.maps.items() if name in removed}
        again = f"{key} again"

        def found(*, longer: bool) -> Measured:
            with self._phase("measure", state.phases):
                cost = self.share.lead(lambda: goals.measured(self.prepared, removed, maps, self._meter, longer=longer))
            if removed:
                blocks = "1 block" if len(removed) == 1 else f"{len(removed)} blocks"
                self.screen.line(f"without {blocks}: {goals.in_words(prune.quantity, cost)}")
            return cost

        if key not in state.measured:
            state.measured[key] = found(longer=False)
        if ratio is not None and again not in state.measured and goals.is_undecided(prune, ratio, state.measured[key]):
            state.measured[key] = state.measured[again] = found(longer=True)
        return state.measured[key]

    def _gone(self, removed: Sequence[str]) -> str:
        """Returns the key, in what was measured, of the network without blocks."""
        maps = [name for name in self.state.maps if name in removed]
        return ";".join([*removed, *(["with maps for", *maps] if maps else [])])

    def check_not_passed(self, ratio: float) -> None:
        """Checks that no more blocks are gone than a ratio asks for, which could no longer be measured.

        Raises:
            UserError: its row is lost, and an earlier session has gone on to larger ratios.
        """
        if ratio != self.config.ratios[-1] and self._schedule(ratio).reached(self.state.removed[:-1]):
            raise UserError(
                f"the row at ratio {ratio:g} is gone, and so are more blocks than it asks for",
                "put its run directory back beside this one, or repeat the run with if_done=rerun",
            )

    def score(self, network: Classifier, original: Classifier) -> Ranking:
        """Ranks the candidates that may go now, the least important first."""
        prepared, scoring = self.prepared, self.config.scoring
        removed = self.state.removed
        schedule = self._schedule(self.config.ratios[-1])
        allowed = schedule.allowed(removed)
        if not allowed and schedule.enough is not None:
            raise goals.out_of_reach(prepared, self.config.ratios[-1], removed, self._measured(removed))
        criterion = of_schedule(self.config.criterion.name, schedule)

        def attempt(batch_size: int) -> Ranking:
            classes, device = len(prepared.images.classes), prepared.device
            return rank_blocks(
                network,
                Samples.of_split(prepared.samples, classes, device=device, batch_size=batch_size),
                criterion=criterion,
                metrics=prepared.votes,
                blocks=allowed,
                against=original if scoring.against == "original" else None,
                original=original,
                repair=self.config.prune.replace if scoring.repair else "nothing",
                aggregation=self.config.criterion.aggregation,
                bootstrap=scoring.bootstrap,
                seed=self.config.seed,
                removed=len(removed),
                precision=prepared.scoring_precision or "fp32",
                memory_gb=scoring.memory_gb * batch_size / SCORING_BATCH_SIZE,
                share=self.share,
                tick=prepared.threads.tick,
                progress=report,
            )

        with self._phase("score", self.state.phases), self.screen.progress(f"scoring {len(allowed)} blocks") as report:
            ranking = self._fitting.attempt("scoring", SCORING_BATCH_SIZE, attempt)
        if ranking.passes > 1:
            self.screen.line(f"the statistics of all blocks exceed scoring.memory_gb: {ranking.passes} passes")
        self.state.scorings += 1
        self.state.scores = pd.concat([self.state.scores, score_table(self.state.scorings, ranking)])
        self.screen.show(_scored(self.state.scorings, ranking))
        self.tracker.scores(dict(zip(ranking.blocks, ranking.importance, strict=True)), len(removed))
        return ranking

    def prune(self, network: Classifier, original: Classifier, ranking: Ranking, ratio: float) -> None:
        """Removes the least important blocks of a ranking, up to `prune.step`, or until the ratio is reached.

        With `criterion.per`, those of the best set that saves enough. With `prune.replace`, maps are fitted in their
        place.
        """
        schedule = self._schedule(ratio)
        going = schedule.next(self._order(ranking, schedule, ratio), self.state.removed)
        for name in going:
            remove_blocks(network, [name])
            self.state.removed.append(name)
            self._show_removal(ranking, ranking.blocks.index(name))
        if self.config.prune.replace != "nothing":
            with self._phase("heal", self.state.phases):
                maps = self._healer.put_maps(network, original, self.state.removed, going, self.state.maps)
            self.state.maps = maps

    def _order(self, ranking: Ranking, schedule: Schedule, ratio: float) -> list[str]:
        """Returns the names of the blocks in the order in which they should go."""
        order, overshoot = [ranking.blocks[i] for i in ranking.order], self.config.prune.overshoot
        if self.config.criterion.per == "nothing":
            return order
        removed = self.state.removed
        savings, wanted = self.state.besides.get(self._gone(removed)) or self._savings(), self._wanted(schedule, ratio)
        # Ranks of several metrics add up as votes do; of one criterion, its own numbers say more.
        votes = list(ranking.distances.values())
        importance = votes[0] if len(votes) == 1 else ranking.importance
        blocks = {block.name: block for block in schedule.allowed(removed)}
        ranked, limits = [blocks[name] for name in order], schedule.most_in_stage(removed)
        return by_value(ranked, importance[ranking.order], savings, wanted, limits, overshoot=overshoot)

    def _savings(self) -> dict[str, float]:
        """Returns what each block of the original saves, as a share."""
        per = self.config.criterion.per
        if self._costs is not None:
            return self._costs.savings(per)
        amounts = self.prepared.amounts(per)
        return {name: amount / amounts.total for name, amount in amounts.by_block.items()}

    def _wanted(self, schedule: Schedule, ratio: float) -> float:
        """Returns the share that is still to be saved."""
        if schedule.enough is None:
            return schedule.left(self.state.removed)
        return goals.left_to_save(self.config.prune, ratio, self._measured(self.state.removed))

    def measure_last(self, ratio: float) -> None:
        """Measures what each block that may go saves from the network as it is, where one may be the last.

        Only where what blocks save counts, and the goal is measured.
        """
        schedule, removed, key = self._schedule(ratio), self.state.removed, self._gone(self.state.removed)
        names = [block.name for block in schedule.allowed(removed)]
        if self.config.criterion.per == "nothing" or schedule.enough is None or not names or key in self.state.besides:
            return
        savings = self._savings()
        if self._wanted(schedule, ratio) > max(savings[name] for name in names):
            return
        prepared, maps, screen = self.prepared, self.state.maps, self.screen
        with self._phase("measure", self.state.phases), screen.progress("measuring what each block saves now"):
            found = self.share.lead(lambda: goals.saved_besides(prepared, removed, maps, names, self._meter))
        self.state.besides[key] = found

    def fine_tune(self, network: Classifier, original: Classifier) -> None:
        """Measures batch norm anew if asked to, and trains the network for `finetune.epochs_per_step`."""
        with self._phase("finetune", self.state.phases) if self._tunes_between else nullcontext():
            self._tune_between(network, original, len(self.state.removed), "fine-tuning")
        self._show_accuracy(network)

    @property
    def _tunes_between(self) -> bool:
        return self.config.finetune.recalibration_images > 0 or self.config.finetune.epochs_per_step > 0

    def _tune_between(self, network: Classifier, original: Classifier, removed: int, description: str) -> None:
        if self.config.finetune.recalibration_images > 0:
            self._trainer.recalibrate(network, self._seed(removed))
        recipe = recipes.after_removal(self.config, removed, self.prepared.target_blocks)
        self._train(network, original, recipe, removed, f"{description} after {removed} removals")

    def fine_tune_finally(self, network: Classifier, original: Classifier, ratio: float) -> Classifier:
        """Returns a copy of the network that was refitted if asked for, and trained for `finetune.final_epochs`."""
        phases = self.state.tuned[str(ratio)] = copy.deepcopy(self.state.phases)
        pruned = as_saved(self.prepared, network, self.state)
        if self.config.prune.refit:
            with self._phase("heal", phases):
                self._healer.refit(pruned, original, list(self.state.maps))
            self._show_accuracy(pruned)
        if self.state.maps:
            with self._phase("heal", phases):
                self._healer.fold(pruned, list(self.state.maps))
        recipe = recipes.at_the_end(self.config, len(self.state.removed), self.prepared.target_blocks)
        if recipe.epochs > 0:
            with self._phase("finetune", phases):
                self._train(pruned, original, recipe, len(self.state.removed), "final fine-tuning")
            self._show_accuracy(pruned)
        return pruned

    def train_control(self, control: str, original: Classifier, pruned: Classifier, ratio: float) -> Classifier:
        """Returns a control's network, trained by the recipe, with the seeds and for the epochs of all fine-tunings."""
        phases: Phases = {}
        self.state.tuned[tuned_key(ratio, control)] = phases
        state, description = self.state, f"control {control}"
        with self._phase("finetune", phases):
            if control in (controls.MORE_TRAINING, controls.TRANSFERRED):
                network = as_saved(self.prepared, original, RunState())
                rounds = controls.removals_so_far(self.prepared, state) if control == controls.MORE_TRAINING else []
                for removed in rounds:
                    self._tune_between(network, original, removed, description)
                recipe = recipes.at_the_end(self.config, len(state.removed), self.prepared.target_blocks)
            else:
                shape = controls.with_maps_of(pruned, state)
                network = as_saved(self.prepared, controls.fresh(self.prepared, shape), shape)
                recipe = controls.recipe(self.prepared, state, control)
            self._train(network, original, recipe, len(state.removed), description)
        self._show_accuracy(network)
        return network

    def evaluate(
        self, original: Classifier, pruned: Classifier, ratio: float, control: str = ""
    ) -> tuple[row.Row, dict[str, Tensor]]:
        """Measures both networks on the same data and the same device.

        Args:
            original: the original network.
            pruned: the pruned one, or that of a control, whose cost is counted and not timed.
            ratio: one of the run's.
            control: empty for the run itself.

        Returns:
            The columns of the row, and whether each network is right about each test image.
        """
        phases = copy.deepcopy(self.state.tuned[tuned_key(ratio, control)])
        with self._phase("evaluate", phases), self.screen.progress("evaluating") as report:
            measured, right = measure(
                self.prepared,
                original,
                pruned,
                training=None if control else self._trainer.measured(original, pruned),
                meter=self._meter,
                share=self.share,
                progress=report,
            )
        asked = {"training": self.config.finetune.batch_size, "scoring": SCORING_BATCH_SIZE}
        sizes = {purpose: self._fitting.size(purpose, size) for purpose, size in asked.items()}
        state = controls.with_maps_of(pruned, controls.shape(control, self.state))
        columns = row.result_columns(self.prepared, state, phases, sizes)
        columns |= {"energy_estimated": None if control else self._meter.estimated}
        if not control:
            decided = self._measured(state.removed) if self.config.prune.quantity in MEASURED else None
            columns |= goals.columns(self.config.prune, decided)
        return columns | row.control_columns(self.config, control) | measured, right

    def track_row(self, columns: row.Row) -> None:
        """Logs the numbers of a finished row to the tracker."""
        with self._tracker_may_fail():
            self.tracker.row(columns, len(self.state.removed))

    @contextmanager
    def tracking(self, run_dir: Path) -> Iterator[None]:
        """Logs losses, accuracies and scores to the configured tracker while the body runs."""
        if self.share.leads:
            self.tracker = Tracker(self.config.tracker, run_dir, asdict(self.config))
        try:
            yield
        finally:
            with self._tracker_may_fail():
                self.tracker.finish()

    @contextmanager
    def _tracker_may_fail(self) -> Iterator[None]:
        """Lets the body fail with a warning: what a tracker does once the row is on disk must not cost the run."""
        try:
            yield
        except Exception as error:
            self.screen.warning(f"tracker={self.config.tracker} failed: {described(error)}")

    @property
    def _healer(self) -> Healer:
        return Healer(self.prepared, self.share, self.screen)

    @property
    def _trainer(self) -> Trainer:
        return Trainer(self.prepared, self.share, self.screen, self._fitting, self.tracker, self.kept)

    @contextmanager
    def _phase(self, name: str, phases: Phases) -> Iterator[None]:
        """Adds what the body uses to a phase, also if it ends with an exception."""
        reading = Reading(self._meter)
        try:
            with self.screen.stage(name), reading, nullcontext() if self.kept is None else self.kept.during(reading):
                yield
        finally:
            phases[name] = phases.get(name, Consumption()) + reading.used

    def _cached_or_trained(self, model: Classifier) -> tuple[Path, bool]:
        recipe, prepared = recipes.training_baseline(self.config), self.prepared
        determined_by = {
            "model": prepared.spec.construction(),
            "target": code_hash(prepared.spec.target),
            "images": prepared.images.train.fingerprint(),
            "augmentation": asdict(prepared.images.augmentation),
            "recipe": asdict(recipe),
            "seed": self.config.seed,
            "precision": prepared.precision,
            "starts_from": hashlib.sha256(serialize(model.network, {})).hexdigest(),
        }

        def train(network: Classifier) -> None:
            self._trainer.train(network, recipe, seed=self.config.seed, description="training the baseline")

        return cached(model, determined_by, Path(self.config.output_dir) / "baselines", train, self.share)

    def _train(
        self, network: Classifier, original: Classifier, recipe: training.Recipe, removed: int, description: str
    ) -> None:
        if recipe.epochs > 0:
            seed = self._seed(removed, int(recipe.epochs * 1000))
            self._trainer.train(
                network, recipe, seed=seed, description=description, teacher=self.prepared.teacher or original
            )

    def _show_removal(self, ranking: Ranking, position: int) -> None:
        criterion, removed = self.config.criterion, self.state.removed
        by_ranks = (criterion.name, criterion.aggregation) == ("consensus", "rank_sum")
        left = [i for i, name in enumerate(ranking.blocks) if name not in removed]
        self.screen.show(
            events.BlockRemoved(
                block=ranking.blocks[position],
                number=len(removed),
                of=self.prepared.target_blocks if self.config.prune.quantity == "blocks" else None,
                importance=float(ranking.importance[position]),
                unit="rank sum" if by_ranks else "importance",
                next_importance=float(ranking.importance[left].min()) if left else None,
            )
        )

    def _show_accuracy(self, network: Classifier) -> None:
        """Shows how good the network is now; never on test images, by which nobody should choose a network."""
        if not self.share.leads:
            return
        held_out = self.prepared.images.val
        images = held_out if len(held_out) else self.prepared.samples
        # Every n-th: the samples lie class after class.
        few = images.subset(torch.arange(0, len(images), max(1, len(images) // CHECKED_IMAGES)))
        correct_pct = accuracy_pct(predict(network, few, self.prepared.device))
        kind = "validation" if len(held_out) else "training"
        self.screen.show(events.AccuracyChecked(correct_pct, len(few), kind))
        self.tracker.accuracy(correct_pct, kind, len(self.state.removed))

    def _seed(self, *where: int) -> int:
        """Returns a seed that differs from phase to phase and depends on nothing but the run's seed."""
        return int(np.random.SeedSequence([self.config.seed, *where]).generate_state(1)[0])


def _scored(number: int, ranking: Ranking) -> events.Scored:
    def by_block(values: Iterable[float]) -> dict[str, float]:
        return {block: float(value) for block, value in zip(ranking.blocks, values, strict=True)}

    return events.Scored(
        step=number,
        order=tuple(ranking.blocks[i] for i in ranking.order),
        importance=by_block(ranking.importance),
        distances={metric: by_block(values) for metric, values in ranking.distances.items()},
        ranks={metric: by_block(values) for metric, values in ranking.ranks.items()},
    )
