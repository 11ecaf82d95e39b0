"""Taking each candidate out once before anything is built on it: what the trace cannot see, the network shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from consensus_cli.models.copying import clone
from consensus_cli.models.modes import UsedParameters, answer, uncompiled
from consensus_cli.pruning.block import Block
from consensus_cli.pruning.removability import parameters_outside
from consensus_cli.pruning.surgery import bypassed, parts_of, remove_blocks

_NEEDS_IT = "the code around it needs its modules"


def tried(network: nn.Module, example: Tensor, blocks: Sequence[Block]) -> list[Block]:
    """Returns the blocks, of which those that the network cannot do without stay, with the reason.

    Code around a block may count on more than what it returns: on an attribute, on how many blocks there are. So the
    network runs without each candidate once, and really loses all of them once.

    Args:
        network: the network that the blocks were found in; a copy that may run.
        example: (n, …) images as the network takes them.
        blocks: blocks of the network, in order of execution.
    """
    expected = [tensor.shape for tensor in answer(network, example)]
    reasons = {b.name: _why_stays(network, example, b, expected) for b in blocks if b.removable}
    names = [name for name, reason in reasons.items() if not reason]
    removed = clone(network)
    remove_blocks(removed, names)
    with bypassed(network, *names):
        pairs = list(zip(answer(removed, example), answer(network, example), strict=True))
    if not all(a.is_meta or torch.equal(a, b) for a, b in pairs):
        reasons |= dict.fromkeys(names, "removed, the candidates do not answer as they do bypassed")
    return [replace(b, removable=False, reason=reasons[b.name]) if reasons.get(b.name) else b for b in blocks]


def _why_stays(network: nn.Module, example: Tensor, block: Block, expected: list[torch.Size]) -> str:
    parts = parts_of(block.name)
    modules = [network.get_submodule(path) for path in parts]
    own = {id(p) for module in modules for p in module.parameters()} - parameters_outside(network, modules)
    try:
        with bypassed(network, block), uncompiled(), UsedParameters() as used:
            found = answer(network, example)
    except Exception as error:
        return f"{_NEEDS_IT} ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
    if own & used.keys:
        return "its modules run without it as well: the network holds them in a plain list, for one"
    if [tensor.shape for tensor in found] != expected:
        return "the network answers in another form without it"
    # Tensors of the device "meta" have a shape alone.
    if not all(tensor.is_meta or tensor.isfinite().all() for tensor in found):
        return "the network's answers are not finite without it"
    if not block.is_branch:
        return ""
    pairs = zip(found, _silenced(network, example, parts[-1]), strict=True)
    return "" if all(a.is_meta or torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs) else _NEEDS_IT


def _silenced(network: nn.Module, example: Tensor, path: str) -> list[Tensor]:
    """Returns what the network answers when a branch's last module, which returns what is added, returns zeros."""

    def silence(_: nn.Module, __: object, output: Any) -> object:
        if isinstance(output, Tensor):
            return torch.zeros_like(output)
        return tuple(torch.zeros_like(element) if isinstance(element, Tensor) else element for element in output)

    with network.get_submodule(path).register_forward_hook(silence):
        return answer(network, example)
