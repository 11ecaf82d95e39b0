"""The head of a network, found by what it computes: the last products with weights, of which the logits are made.

The representation of an image is what the head gets. Which module, or which product in a function, is the head is read
off one forward pass: from the logits back along everything that they were computed from, up to the first products. So a
linear layer, a convolution, a cosine classifier written in the network's own forward and a distilled pair of heads are
all found, and an auxiliary head that only contributes to the logits is not mistaken for one. Where one of the products
is made of another's result, they are what residual blocks add up: the network is a backbone without a head, and the
features that it answers with are the representation.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from consensus_cli.errors import UserError
from consensus_cli.models.classifier import logits_of
from consensus_cli.models.modes import evaluating, following, tensors_in, uncompiled

_CONVOLUTIONS: tuple[Any, ...] = (functional.conv1d, functional.conv2d, functional.conv3d)

#: functions that mix features by weights; all others hand the logits on
_PRODUCTS: frozenset[Any] = frozenset(
    {functional.linear, functional.bilinear, torch.cdist, torch.einsum, *_CONVOLUTIONS}
    | {getattr(torch, name) for name in ("addmm", "baddbmm", "bmm", "cosine_similarity", "matmul", "mm")}
    | {torch.pairwise_distance}
    | {
        getattr(Tensor, name)
        for name in ("__matmul__", "__rmatmul__", "addmm", "baddbmm", "bmm", "matmul", "mm")
    }
)  # fmt: skip

#: functions by which features meet a prototype of every class at once, where they spread over the classes
_SPREADING: frozenset[Any] = frozenset(
    {torch.mul, torch.sub, Tensor.mul, Tensor.sub, Tensor.__mul__, Tensor.__sub__, Tensor.__rsub__}
)


@dataclass(frozen=True)
class _Part:
    """One of the products that logits are made of.

    Attributes:
        path: the module that consists of it; None where it stands in the code of a larger module.
        number: how many calls that may be products ran before it.
        operand: which of the tensors it is given holds the features.
        channels_first: whether the features are the second dimension and positions follow.
        transposed: whether they are (d, n).
    """

    path: str | None
    number: int
    operand: int
    channels_first: bool
    transposed: bool

    def representation(self, features: Tensor) -> Tensor:
        """Returns the features of each image, (n, d), averaged over positions where there are some."""
        if self.transposed:
            return features.T
        if features.ndim <= 2:
            return features
        return features.flatten(2).mean(2) if self.channels_first else features.flatten(1, -2).mean(1)


@dataclass(frozen=True)
class Head:
    """What computes the logits of a network.

    Attributes:
        parts: one product, or several whose results together are the logits (a distilled pair); none in a backbone,
            whose answer is the representation.
        calls: how many calls that may be products one forward pass makes.
    """

    parts: tuple[_Part, ...]
    calls: int

    @property
    def modules(self) -> tuple[str, ...]:
        """Dotted names of the modules that the head consists of; none where it is written in other code."""
        return tuple(part.path for part in self.parts if part.path is not None)

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[Callable[[], Tensor]]:
        """Watches a network while the body runs.

        Args:
            network: the one in which the head was found, or a copy of it, also without some of its blocks.

        Yields:
            A function that returns the representation (n, d) of the latest forward pass.
        """
        seen: dict[str, Tensor] = {}
        # Counted from the end: a network without some of its blocks makes fewer calls before its head.
        from_end = {part: self.calls - part.number for part in self.parts if part.path is None}
        products = _LatestProducts(max(from_end.values(), default=0))

        def representation() -> Tensor:
            if not self.parts:
                return seen[""]
            found = [
                part.representation(
                    products.operands[-from_end[part]][part.operand] if part.path is None else seen[part.path]
                )
                for part in self.parts
            ]
            return found[0] if len(found) == 1 else torch.cat(found, dim=1)

        with ExitStack() as stack:
            for path in self.modules:
                hook = _keep_input(seen, path)
                stack.enter_context(network.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))
            if from_end:
                stack.enter_context(products)
            if not self.parts:
                stack.enter_context(network.register_forward_hook(functools.partial(_keep_answer, seen)))
            yield representation


#: of a backbone: what the network answers is the representation
ANSWER = Head((), 0)


def find_head(network: nn.Module, images: Tensor) -> Head:
    """Returns the head of a network, or `ANSWER` where it has none: what it answers is what its blocks add up.

    Args:
        network: answers with logits in any form that `logits_of` reads; runs once, in eval mode, and is left as it was.
        images: (n, …) as the network takes them.

    Raises:
        UserError: the answer is not made of features and weights.
    """
    recorder = _Recorder(images)
    with following(network, recorder.enter, recorder.leave), evaluating(network), uncompiled(), recorder:
        logits = logits_of(network(images))
    products = recorder.products_behind([logits])
    if not products:
        raise no_head(network, "no linear layer, convolution or matrix product gives its logits")
    for number, product in products.items():
        if (products.keys() - {number}) & recorder.products_behind(product.operands, all_of_them=True).keys():
            return ANSWER
    in_order = [products[number] for number in sorted(products)]
    # An auxiliary head adds something to every logit; its own result has another size.
    whole = tuple(product.part for product in in_order if product.size == logits.numel())
    return Head(whole or tuple(product.part for product in in_order), recorder.calls)


def no_head(network: nn.Module, why: str) -> UserError:
    """Returns the error for a network of which metrics have nothing to compare."""
    return UserError(
        f"{type(network).__name__} has no head: {why}",
        "metrics compare what the head gets; these criteria need no metric: random, uniform, weight_norm, first, last",
    )


@dataclass(frozen=True)
class _Product:
    """A call of a product: the part of a head that it may be, how many numbers it computes, and what it was given."""

    part: _Part
    size: int
    operands: list[Tensor]


class _Recorder(TorchFunctionMode):
    """Notes what the tensors of a forward pass are computed from; keeps them alive, so that no id is used twice."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.calls = 0
        self._made_from: dict[int, list[Tensor]] = {id(images): [images]}
        self._products: dict[int, _Product] = {}
        self._images = len(images)
        self._running: list[tuple[str, list[Tensor]]] = []

    def enter(self, path: str, given: Any) -> None:
        """Notes that a module starts."""
        self._running.append((path, list(tensors_in(given))))

    def leave(self, *_: Any) -> None:
        """Notes that the module that started last ends."""
        self._running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sources = list(tensors_in([args, kwargs or {}]))
        depends = [i for i, source in enumerate(sources) if id(source) in self._made_from]
        if depends:
            # What is written in place, also by `x[i] = …`, is computed from all that was given.
            results = list(tensors_in([result])) or sources[:1]
            for tensor in results:
                self._made_from[id(tensor)] = [*self._made_from.get(id(tensor), []), *sources, tensor]
            if isinstance(result, Tensor) and (func in _PRODUCTS or self._spreads(func, sources, depends, result)):
                self._note_product(func, sources, depends[0], result)
        self.calls += func in _PRODUCTS or func in _SPREADING
        return result

    def _spreads(self, func: Any, sources: list[Tensor], depends: list[int], result: Tensor) -> bool:
        return func in _SPREADING and depends in ([0], [1]) and result.numel() > sources[depends[0]].numel()

    def _note_product(self, func: Any, sources: list[Tensor], operand: int, result: Tensor) -> None:
        path, given = self._running[-1] if self._running else ("", [])
        makes_up_module = len(given) == 1 and given[0] is sources[operand]
        features = sources[operand]
        spread_last = func in _SPREADING and features.shape[-1] == 1
        part = _Part(
            path=(path or None) if makes_up_module else None,
            number=self.calls,
            operand=operand,
            channels_first=func in _CONVOLUTIONS or spread_last,
            transposed=features.ndim == 2 and len(features) != self._images == features.shape[1],
        )
        self._products[id(result)] = _Product(part, result.numel(), sources)

    def products_behind(self, tensors: Iterable[Tensor], *, all_of_them: bool = False) -> dict[int, _Product]:
        """Returns the products that tensors are made of, by number: the last on each way, or all of them."""
        found: dict[int, _Product] = {}
        seen: set[int] = set()
        waiting = list(tensors)
        while waiting:
            tensor = waiting.pop()
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            product = self._products.get(id(tensor))
            if product is not None:
                found[product.part.number] = product
            if product is None or all_of_them:
                waiting += self._made_from.get(id(tensor), [])
        return found


class _LatestProducts(TorchFunctionMode):
    """Keeps what the latest products got; only so many, for they keep the features of whole batches alive."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.operands: deque[list[Tensor]] = deque(maxlen=count)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS or func in _SPREADING:
            self.operands.append(list(tensors_in([args, kwargs or {}])))
        return func(*args, **(kwargs or {}))


def _keep_input(seen: dict[str, Tensor], path: str) -> Callable[..., None]:
    def keep(_module: nn.Module, args: Any, kwargs: Any) -> None:
        seen[path] = next(tensors_in([args, kwargs]))

    return keep


def _keep_answer(seen: dict[str, Tensor], _module: nn.Module, _args: Any, answer: Any) -> None:
    seen[""] = logits_of(answer)
