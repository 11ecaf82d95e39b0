"""Taking each candidate out once before anything is built on it: what the trace cannot see, the network shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from consensus_cli.models.copying import clone
from consensus_cli.models.modes import UsedParameters, evaluating, tensors_in, uncompiled
from consensus_cli.pruning.block import Block
from consensus_cli.pruning.surgery import bypassed, parts_of, remove_blocks


def tried(network: nn.Module, example: Tensor, blocks: Sequence[Block]) -> list[Block]:
    """Returns the blocks, of which those that the network cannot do without stay, with the reason.

    Code around a block may count on more than what it returns: on an attribute, on how many blocks there are. So the
    network runs without each candidate once, and really loses all of them once.

    Args:
        network: the network that the blocks were found in; a copy that may run.
        example: (n, …) images as the network takes them.
        blocks: blocks of the network, in order of execution.
    """
    with evaluating(network):
        expected = [tensor.shape for tensor in tensors_in([network(example)])]
    reasons = {b.name: _why_stays(network, example, b, expected) for b in blocks if b.removable}
    blocks = [replace(b, removable=False, reason=reasons[b.name]) if reasons.get(b.name) else b for b in blocks]
    if not _removed_answers_as_bypassed(network, example, [b.name for b in blocks if b.removable]):
        reason = "removed, the candidates do not answer as they do bypassed"
        blocks = [replace(b, removable=False, reason=reason) if b.removable else b for b in blocks]
    return list(blocks)


def _why_stays(network: nn.Module, example: Tensor, block: Block, expected: list[torch.Size]) -> str:
    own = {id(p) for path in parts_of(block.name) for p in network.get_submodule(path).parameters()}
    try:
        with bypassed(network, block), uncompiled(), UsedParameters() as used:
            found = _answer(network, example)
    except Exception as error:
        return f"the network's code fails without it ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
    if own & used.keys:
        return "its modules run without it as well: the network holds them in a plain list, for one"
    if [tensor.shape for tensor in found] != expected:
        return "the network answers in another form without it"
    # Tensors of the device "meta" have a shape alone.
    if not all(tensor.is_meta or tensor.isfinite().all() for tensor in found):
        return "the network's answers are not finite without it"
    return ""


def _removed_answers_as_bypassed(network: nn.Module, example: Tensor, names: Sequence[str]) -> bool:
    removed = clone(network)
    remove_blocks(removed, names)
    with bypassed(network, *names):
        expected = _answer(network, example)
    answers = zip(_answer(removed, example), expected, strict=True)
    return all(a.is_meta or torch.equal(a, b) for a, b in answers)


def _answer(network: nn.Module, example: Tensor) -> list[Tensor]:
    with evaluating(network):
        return list(tensors_in([network(example)]))
