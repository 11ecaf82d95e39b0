"""Representations of a network and of the network without each candidate block, in one pass.

Removing a block changes nothing before it. So the network runs once: at every candidate the images fork into one more
stream, which takes the block's shortcut, and all streams go on together as one larger batch. A block at depth p of the
network costs the share 1 − p of a forward pass, about half a pass per candidate instead of a whole one. The stream that
goes without a branch begins before the block that the branch is part of, and the branch adds zeros to it.

Where the network does not take a larger batch on the way, every stream goes on by itself from its block on
(`consensus_cli.scoring.resuming`), at the same cost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from consensus_cli.errors import foreign_code, unknown_name
from consensus_cli.models.copying import clone, to_layout
from consensus_cli.models.head import ANSWER, Head, find_head
from consensus_cli.models.modes import SAME, alike, tensors_in
from consensus_cli.pruning.block import Block
from consensus_cli.pruning.surgery import bypassed, parts_of
from consensus_cli.scoring.folding import fold_batch_norms
from consensus_cli.scoring.resuming import ResumedPasses

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

PROBE_IMAGES = 3

#: Ways to serve all candidates by one pass, in the order in which they are tried -> how far results may be off, as a
#: share of the largest number: a batch of another size takes other kernels, one of the same size takes the same.
ONE_PASS = {"forked": SAME, "resumed": 1e-5}

_NEEDED = "find_blocks(model, example) tries which blocks a network can do without, unless verify=False"

#: Tensors of the largest size that live at once: a block's input, its output, a temporary and the forked batch.
LIVE_TENSORS = 4

#: More images at once do not make a pass faster, on CPU or GPU.
MAX_BATCH_SIZE = 1024

#: On a CPU a pass is fastest while the largest tensor of all streams stays in the cache nearest to the cores.
CACHE_BYTES = 4 * 2**20


class AblationEngine:
    """Computes the representations of a network and of the network without each candidate block.

    The representation is what the network's head gets (`consensus_cli.models.head`). The engine works on a copy of the
    network, in eval mode and with batch norms folded into convolutions, so the network itself is never touched. On
    construction a few random images go through it: where neither way to serve all candidates by one pass gives what a
    whole forward pass per candidate gives, the engine takes that one.

    Attributes:
        candidates: names of the c candidate blocks, in the order of the rows.
        features: length d of a representation.
        way: `forked` where the streams of all candidates go on as one batch, `resumed` where each goes on by itself
            from its block, `in turn` where each candidate takes a whole forward pass.
        batch_size: images per call of `representations` that keep it within the memory budget.

    Args:
        network: takes images as `example`; left as it is.
        blocks: the candidates; removable blocks of `network`.
        example: (n, c, h, w) or other images as the network takes them; only shape, type and device matter.
        precision: `fp32`, or `bf16` for autocast to bfloat16, whose 8 bits of mantissa change close ranks.
        memory_gb: budget for the activations in GiB.
        memory_format: of the images and of the weights.
        tick: called after every forward pass.
        maps: candidate -> module that stands in its place instead of the shortcut alone.
        answers: whether the rows are the networks' logits, and not their representations.

    Raises:
        UserError: unknown precision, a network that answers in another form than (n, d), or one that cannot do without
            a block.
    """

    def __init__(
        self,
        network: nn.Module,
        blocks: Sequence[Block],
        example: Tensor,
        *,
        precision: str = "fp32",
        memory_gb: float = 2.0,
        memory_format: torch.memory_format = torch.channels_last,
        tick: Callable[[], None] | None = None,
        maps: Mapping[str, nn.Module] | None = None,
        answers: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise unknown_name("precision", precision, PRECISIONS)
        self.candidates = tuple(block.name for block in blocks)
        self._blocks = tuple(blocks)
        self._tick = tick
        self._maps = dict(maps or {})
        self._dtype = PRECISIONS[precision]
        self._memory_format = memory_format if example.ndim == 4 else torch.contiguous_format
        probe = torch.rand((PROBE_IMAGES, *example.shape[1:]), generator=torch.Generator().manual_seed(0))
        probe = self._laid_out(probe.to(example))
        self._network, self._head = _scoring_copy(network, probe, self._memory_format, answers=answers)
        self._resumed = ResumedPasses(
            self._network,
            {block.name: [self._network.get_submodule(path) for path in parts_of(block.name)] for block in blocks},
            functools.partial(bypassed, self._network, using=self._maps),
        )
        with torch.no_grad():
            with foreign_code(f"{type(network).__name__}, without one of the blocks,", _NEEDED):
                expected = self._bypassing(probe)
            self.way = next((way for way in ONE_PASS if self._gives(way, expected, probe)), "in turn")
            self.features = expected.shape[-1]
            bytes_per_image = self._largest_tensor_bytes(probe) / PROBE_IMAGES
        result_bytes = expected[:, 0].numel() * expected.element_size()
        kept = self._resumed.bytes_kept / PROBE_IMAGES if self.way == "resumed" else 0
        budget = memory_gb * 2**30 / (LIVE_TENSORS * bytes_per_image + LIVE_TENSORS * result_bytes + kept)
        self.batch_size = int(min(max(budget, 1), MAX_BATCH_SIZE))
        in_cache = int(CACHE_BYTES / bytes_per_image) if example.device.type == "cpu" else self.batch_size
        self._images_per_pass = min(max(in_cache, 1), self.batch_size)

    def representations(self, images: Tensor) -> Tensor:
        """Returns (1 + c, b, d) float32: row 0 of the network, row 1 + j of the network without candidate j.

        Args:
            images: (b, ...) as the network takes them, any number.
        """
        result = torch.empty(1 + len(self.candidates), len(images), self.features, device=images.device)
        images = self._laid_out(images)
        with (
            torch.no_grad(),
            torch.autocast(images.device.type, self._dtype, enabled=self._dtype != torch.float32),
        ):
            for start in range(0, len(images), self._images_per_pass):
                chunk = slice(start, start + self._images_per_pass)
                result[:, chunk] = self._rows(self.way, images[chunk])
        return result

    def _rows(self, way: str, images: Tensor) -> Tensor:
        if way == "forked":
            return self._forking(images)
        return self._resuming(images) if way == "resumed" else self._bypassing(images)

    def _forking(self, images: Tensor) -> Tensor:
        """One pass: each candidate appends the stream that goes without it."""
        forks: list[str] = []
        came_in: dict[str, Tensor] = {}

        def fork(name: str, all_streams: Tensor, new: Tensor) -> Tensor:
            forks.append(name)
            return torch.cat([all_streams, new])

        def of_network(streams: Tensor) -> Tensor:
            return streams[: len(streams) // (1 + len(forks))]

        def skip(name: str, given: Any, output: Any) -> Any:
            x = of_network(next(tensors_in(given)))
            forked = fork(name, next(tensors_in([output])), self._maps[name](x) if name in self._maps else x)
            return forked if isinstance(output, Tensor) else (forked, *output[1:])

        def enter(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            first = next(tensors_in([args, kwargs]))
            forked = fork(name, first, of_network(first))
            given = tuple(forked if value is first else value for value in args)
            return given, {key: forked if value is first else value for key, value in kwargs.items()}

        def silence(name: str, output: Any) -> Any:
            if not isinstance(output, Tensor):
                return tuple(silence(name, value) if isinstance(value, Tensor) else value for value in output)
            streams = output.clone().unflatten(0, (1 + len(forks), -1))
            streams[1 + forks.index(name)] = self._maps[name](came_in[name]) if name in self._maps else 0
            return streams.flatten(0, 1)

        def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            streams = next(tensors_in([args, kwargs])).unflatten(0, (1 + len(forks), -1))
            came_in[name] = streams[1 + forks.index(name)]

        with ExitStack() as hooks:
            for block in self._blocks:
                last = self._network.get_submodule(parts_of(block.name)[-1])
                if block.is_branch:
                    # What its result is added to is a variable of the block's code: the stream begins with the block.
                    owner = self._network.get_submodule(block.name.partition("+")[0])
                    before = owner.register_forward_pre_hook(
                        lambda _m, args, kwargs, name=block.name: enter(name, args, kwargs), with_kwargs=True
                    )
                    hooks.enter_context(before)
                    first = self._network.get_submodule(parts_of(block.name)[0])
                    noted = first.register_forward_pre_hook(
                        lambda _m, args, kwargs, name=block.name: note(name, args, kwargs), with_kwargs=True
                    )
                    hooks.enter_context(noted)
                    after = last.register_forward_hook(lambda _m, _, out, name=block.name: silence(name, out))
                else:
                    after = last.register_forward_hook(
                        lambda _m, args, kwargs, out, name=block.name: skip(name, (args, kwargs), out), with_kwargs=True
                    )
                hooks.enter_context(after)
            streams = self._representation(images).unflatten(0, (1 + len(self.candidates), len(images)))
        return streams[[0, *(1 + forks.index(name) for name in self.candidates)]]

    def _resuming(self, images: Tensor) -> Tensor:
        """One pass, and for each candidate what lies behind it, without it."""
        found = self._resumed(lambda: self._representation(images))
        return torch.stack([found[name] for name in (None, *self.candidates)])

    def _bypassing(self, images: Tensor) -> Tensor:
        """One forward pass per candidate, which goes around it."""
        rows = [self._representation(images)]
        for block in self._blocks:
            with bypassed(self._network, block, using=self._maps):
                rows.append(self._representation(images))
        return torch.stack(rows)

    def _representation(self, images: Tensor) -> Tensor:
        representation = _representation(self._network, self._head, images)
        if self._tick is not None:
            self._tick()
        return representation

    def _gives(self, way: str, expected: Tensor, images: Tensor) -> bool:
        try:
            return alike(self._rows(way, images), expected, ONE_PASS[way])
        except Exception:
            # Whatever code of the network's the streams upset, bypassing has just worked.
            return False

    def _largest_tensor_bytes(self, images: Tensor) -> int:
        """Returns the size of the largest tensor that a module puts out in the pass that the engine will run."""
        largest = 0

        def note_size(_module: nn.Module, _args: object, output: object) -> None:
            nonlocal largest
            if isinstance(output, Tensor):
                largest = max(largest, output.numel() * output.element_size())

        with ExitStack() as hooks:
            for module in self._network.modules():
                hooks.enter_context(module.register_forward_hook(note_size))
            (self._forking if self.way == "forked" else self._representation)(images)
        return largest

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=self._memory_format)


def representation_size(network: nn.Module, example: Tensor) -> int:
    """Returns the length d of a representation.

    Args:
        network: takes images as `example`; a copy of it runs.
        example: (n, c, h, w) or other images as the network takes them.

    Raises:
        UserError: a network without weights before its answer, or one that answers in another form than (n, d).
    """
    copied = clone(network).eval()
    head = find_head(copied, example)
    with torch.no_grad():
        return _representation(copied, head, example).shape[1]


def _scoring_copy(
    network: nn.Module, images: Tensor, memory_format: torch.memory_format, *, answers: bool
) -> tuple[nn.Module, Head]:
    """Returns a copy made for speed, and its head."""
    copied = to_layout(clone(network).eval(), memory_format)
    head = ANSWER if answers else find_head(copied, images)
    folded = clone(copied)
    with torch.no_grad():
        expected = _representation(copied, head, images)
        try:
            fold_batch_norms(folded, images)
            same = alike(_representation(folded, head, images), expected)
        except Exception:
            # Code of the network's that reads its norms or sets its weights, as the older `weight_norm` does.
            same = False
    return (folded if same else copied), head


def _representation(network: nn.Module, head: Head, images: Tensor) -> Tensor:
    with head.watching(network) as representation:
        # Networks may write into the images that they are given.
        network(images.clone())
        return representation()
