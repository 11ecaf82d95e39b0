"""Taking each candidate out once before anything is built on it: what the trace cannot see, the network shows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from consensus_cli.errors import described
from consensus_cli.models.copying import clone
from consensus_cli.models.modes import UsedParameters, alike, answer, tensors_in, uncompiled
from consensus_cli.pruning.block import Block
from consensus_cli.pruning.removability import parameters_outside
from consensus_cli.pruning.silencing import DrawsInOrder, seed, silenced
from consensus_cli.pruning.surgery import bypassed, parts_of, remove_blocks, unheard
from consensus_cli.pruning.trace import Trace

_NEEDS_IT = "the code around it needs its modules"

#: passes after which a parameter that got no gradient gets none: layers may be skipped at random
_MOST_PASSES = 6


@uncompiled()
def tried(network: nn.Module, example: Tensor, seen: Trace, blocks: Sequence[Block]) -> list[Block]:
    """Returns the blocks, of which those that the network cannot do without stay, with the reason.

    Code around a block may count on more than what it returns: on an attribute, on how many blocks there are. So the
    network runs without every other candidate, without the others, and without all; if that fails, without one at a
    time. One candidate of each class of modules is taken through more (each one, where the first of them stays):
    bypassed and really removed, the network must answer as it does when the block adds nothing, in eval and in training
    mode, and a backward pass must reach all parameters that it reaches then, with finite gradients. At last all
    candidates are really removed at once.

    Args:
        network: the network that the blocks were found in; a copy that may run.
        example: (n, …) images as the network takes them.
        seen: the data flow of the network.
        blocks: blocks of the network, in order of execution.
    """
    names = [block.name for block in blocks if block.removable]
    if not names:
        return list(blocks)
    trial = _Trial(network, example, seen)
    reasons = dict.fromkeys(names, "")
    # Neighbours may need each other, but not where both are gone.
    if any(trial.why_needed(group) for group in (names[::2], names[1::2], names)):
        reasons = {name: trial.why_needed([name]) for name in names}
    of_class: dict[str, str] = {}
    for name in (name for name in names if not reasons[name]):
        kind = trial.kind(name)
        # Where the first of a class stays, others may still go: it may be the only one that uses what they share.
        if of_class.get(kind, "stays"):
            reasons[name] = trial.why_differs([name])
            of_class.setdefault(kind, reasons[name])
    left = [name for name in names if not reasons[name]]
    if len(left) > 1:
        reasons |= dict.fromkeys(left, trial.why_differs(left))
    return [replace(b, removable=False, reason=reasons[b.name]) if reasons.get(b.name) else b for b in blocks]


class _Trial:
    """The trials of one network: `network` runs in eval mode, `trained` in training mode."""

    def __init__(self, network: nn.Module, example: Tensor, seen: Trace) -> None:
        self.network, self.example, self.seen = network, example, seen
        # In eval mode one image is enough.
        self.image = example[:1]
        found = _answer(network, self.image)
        self.shapes = [tensor.shape for tensor in found]
        # Tensors of the device "meta" have a shape alone.
        self.has_values = not any(tensor.is_meta for tensor in found)
        self.trained = clone(network)
        self.gradients: dict[str, bool] = {}
        if self.has_values:
            # Where it cannot be trained, or not on so few images, the dry run says so if it has to be.
            with suppress(Exception):
                self.gradients = _gradients(self.trained, example)[1]

    def kind(self, name: str) -> str:
        """Returns what blocks of one class have in common: the classes of all their modules."""
        modules = [self.network.get_submodule(path) for path in parts_of(name)]
        return str(["+" in name, *(type(part) for module in modules for part in module.modules())])

    def why_needed(self, names: Sequence[str]) -> str:
        """Returns why the network does not run without some blocks, or an empty string where it does."""
        own = self._own_parameters(names)
        try:
            with bypassed(self.network, *names), UsedParameters() as used:
                found = _answer(self.network, self.image)
        except Exception as error:
            return f"{_NEEDS_IT} ({described(error)[:120]})"
        if own & used.parameters.keys():
            return "its modules run without it as well: the network holds them in a plain list, for one"
        if [tensor.shape for tensor in found] != self.shapes:
            return "the network answers in another form without it"
        if self.has_values and not all(tensor.isfinite().all() for tensor in found):
            return "the network's answers are not finite without it"
        return ""

    def why_differs(self, names: Sequence[str]) -> str:
        """Returns how a network without some blocks differs from one in which they add nothing; empty: in no way."""
        removed = clone(self.network)
        remove_blocks(removed, names)
        found = _answer(removed, self.image)
        with bypassed(self.network, *names):
            if not self._alike(found, _answer(self.network, self.image)):
                return "really removed, the network does not answer as it does when it is bypassed"
        quiet = self._silenced(self.network.eval(), self.image, names)
        if quiet is not None and not self._alike(found, quiet):
            return "without it, the network does not answer as it does when its branch adds nothing"
        return self._why_trains_otherwise(removed, names) if self.gradients else ""

    def _why_trains_otherwise(self, removed: nn.Module, names: Sequence[str]) -> str:
        try:
            found, gradients = _gradients(removed, self.example)
        except Exception as error:
            return f"without it, training fails ({described(error)[:120]})"
        for name, finite in gradients.items():
            if not finite and self.gradients.get(name):
                return f"without it, the gradient of {name} is not finite"
        present = {name for name, _ in removed.named_parameters(remove_duplicate=False)}
        lost = (self.gradients.keys() & present) - gradients.keys()
        for number in range(1, _MOST_PASSES):
            lost -= _gradients(removed, self.example, number)[1].keys() if lost else set()
        if lost:
            # What serves these blocks alone, as global queries do, has nothing left to do.
            with unheard(self.trained, names):
                lost &= _gradients(self.trained, self.example)[1].keys()
        if lost:
            return f"without it, {min(lost)} gets no gradient"
        quiet = self._silenced(self.trained.train(), self.example, names)
        if quiet is None:
            with bypassed(self.trained, *names):
                quiet = _training_answer(self.trained, self.example)
        # With generators of its own, a network answers otherwise each time.
        if self._alike(found, quiet) or not self._alike(found, _training_answer(removed, self.example)):
            return ""
        return "without it, the network trains otherwise than when its branch adds nothing"

    def _silenced(self, network: nn.Module, images: Tensor, names: Sequence[str]) -> list[Tensor] | None:
        """Returns what a network answers when a block adds nothing; None for several, or where its sums are not met."""
        if not self.has_values or len(names) > 1:
            return None
        seed(0)
        with torch.no_grad(), silenced(network, self.seen, names[0]) as silencer, DrawsInOrder():
            found = list(tensors_in([network(images.clone())]))
        return None if silencer is not None and silencer.left else found

    def _own_parameters(self, names: Sequence[str]) -> set[int]:
        """Returns the ids of the parameters that go with blocks."""
        modules = [self.network.get_submodule(path) for name in names for path in parts_of(name)]
        own = {id(parameter) for module in modules for parameter in module.parameters()}
        return own - parameters_outside(self.network, modules)

    def _alike(self, found: list[Tensor], expected: list[Tensor]) -> bool:
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
            return False
        return not self.has_values or all(map(alike, found, expected))


def _answer(network: nn.Module, images: Tensor) -> list[Tensor]:
    # Something random may be on in eval mode as well; that is for the dry run to find.
    seed(0)
    return answer(network, images)


def _training_answer(network: nn.Module, example: Tensor) -> list[Tensor]:
    seed(0)
    with torch.no_grad(), DrawsInOrder():
        return list(tensors_in([network.train()(example.clone())]))


def _gradients(network: nn.Module, example: Tensor, number: int = 0) -> tuple[list[Tensor], dict[str, bool]]:
    """Returns what a network answers in training mode, and the names of the parameters that get a gradient.

    With each name, whether the gradient is finite.
    """
    seed(number)
    network.train().zero_grad()
    with torch.enable_grad():
        with DrawsInOrder():
            found = list(tensors_in([network(example.clone())]))
        losses = [tensor.float().square().mean() for tensor in found if tensor.requires_grad]
        if losses:
            torch.stack(losses).sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters(remove_duplicate=False)}
    finite = {name: bool(grad.isfinite().all()) for name, grad in gradients.items() if grad is not None}
    return [tensor.detach() for tensor in found], finite
