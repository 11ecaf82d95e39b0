"""The processes of one job, as `torchrun` and `accelerate launch` start them: rank 0 leads, the others follow.

The leader alone reads the command line, decides and writes. What it wants done together it sends as a message; the
followers wait for messages. Messages are JSON and safetensors, answers tensors and plain values: nothing that is
received can bring code along.
"""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from consensus_cli.data.share import Share
from consensus_cli.errors import UserError

#: after which a process that waits for the others in a training gives up
TRAINING_TIMEOUT = timedelta(minutes=10)

#: the followers have nothing to do while the leader measures energy or runs attacks
WAITING_TIMEOUT = timedelta(days=30)

_STOP = "stop"
T = TypeVar("T")


@dataclass(frozen=True)
class Message:
    """What the leader asks the followers to do.

    Attributes:
        kind: what to do.
        values: plain values that JSON can carry.
        blobs: files in memory (safetensors).
    """

    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)
    blobs: tuple[bytes, ...] = ()


@dataclass
class Team:
    """The processes of a job, seen from one of them.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes.
        control: group that carries messages; None where there is one process.
    """

    rank: int
    world: int
    control: Any = None
    _in_step: bool = False

    @property
    def share(self) -> Share:
        """Which part of shared work is this process's."""
        return Share(self.rank, self.world)

    @property
    def leads(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.rank == 0

    @contextmanager
    def together(self, message: Callable[[], Message], agreed_error: type[Exception] = UserError) -> Iterator[None]:
        """On the leader: has the followers do what the message says while the body does the leader's part of it.

        Args:
            message: makes the message that says what to do; not called where there is nobody to ask.
            agreed_error: what the body raises only where every process has come to its end. After anything else the
                followers hang in the middle of their part, and nothing more can be asked of them.

        Raises:
            RuntimeError: an earlier step broke off.
        """
        if self.world > 1:
            if self._in_step:
                raise RuntimeError("a step of this job broke off in one process: the job cannot go on")
            self._in_step = True
            self._broadcast(_packed(message()))
        try:
            yield
        except agreed_error:
            self._in_step = False
            raise
        self._in_step = False

    def receive(self) -> Message:
        """On a follower: returns the next message of the leader."""
        return _unpacked(self._broadcast(None))

    def gather(self, make: Callable[[], T], device: torch.device, also: Sequence[type] = ()) -> list[T]:
        """Has every process make its part; the leader gets all of them in the order of ranks, on its `device`.

        A part may hold tensors, plain values, and objects of the classes in `also` and of those that the leader's own
        part is made of.

        Returns:
            All parts on the leader, none elsewhere.

        Raises:
            UserError: the first that a process raised, on the leader, after all have answered.
        """
        own, error = _attempt(make)
        if not self.leads:
            answer = io.BytesIO()
            torch.save({"part": own, "error": None if error is None else [error.message, error.hint]}, answer)
            self._send(answer.getvalue())
            return []
        answers = [self._receive_from(rank) for rank in range(1, self.world)]
        if error is not None:
            raise error
        parts: list[Any] = [own]
        with torch.serialization.safe_globals([*_classes(own), *also]):
            for answer_bytes in answers:
                answer_of_rank = torch.load(io.BytesIO(answer_bytes), map_location=device, weights_only=True)
                if answer_of_rank["error"] is not None:
                    raise UserError(*answer_of_rank["error"])
                parts.append(answer_of_rank["part"])
        return parts

    def dismiss(self) -> None:
        """Ends the job's togetherness: the followers stop waiting for messages."""
        if self.leads and not self._in_step:
            self._broadcast(_packed(Message(_STOP)))
        distributed.destroy_process_group()

    def _broadcast(self, data: bytes | None) -> bytes:
        length = torch.tensor([len(data or b"")])
        distributed.broadcast(length, 0, group=self.control)
        payload = _tensor(data) if data is not None else torch.empty(int(length), dtype=torch.uint8)
        distributed.broadcast(payload, 0, group=self.control)
        return payload.numpy().tobytes()

    def _send(self, data: bytes) -> None:
        distributed.send(torch.tensor([len(data)]), 0, group=self.control)
        distributed.send(_tensor(data), 0, group=self.control)

    def _receive_from(self, rank: int) -> bytes:
        length = torch.empty(1, dtype=torch.int64)
        distributed.recv(length, rank, group=self.control)
        payload = torch.empty(int(length), dtype=torch.uint8)
        distributed.recv(payload, rank, group=self.control)
        return payload.numpy().tobytes()


def launched() -> bool:
    """Says whether a launcher started this process as one of several."""
    return world() > 1


def world() -> int:
    """Returns the number of processes of this job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Returns the number of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@functools.cache
def team() -> Team:
    """Returns the processes that this one belongs to, for its whole life; meets the others at the first call.

    Raises:
        UserError: the launcher asks for a way to share the model that this package does not support.
    """
    if not launched():
        return Team(0, 1)
    for variable in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"):
        if os.environ.get(variable, "false").lower() == "true":
            raise UserError(
                f"{variable.removeprefix('ACCELERATE_USE_')} is not supported: surgery needs the whole network",
                "launch with data parallelism alone: torchrun, or accelerate launch --multi_gpu",
            )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=TRAINING_TIMEOUT)
    control = distributed.new_group(backend="gloo", timeout=WAITING_TIMEOUT)
    return Team(distributed.get_rank(), distributed.get_world_size(), control)


def messages(members: Team) -> Iterator[Message]:
    """On a follower: yields what the leader asks for, until it dismisses the team."""
    while (message := members.receive()).kind != _STOP:
        yield message


def _attempt(make: Callable[[], T]) -> tuple[T | None, UserError | None]:
    try:
        return make(), None
    except UserError as error:
        return None, error


def _packed(message: Message) -> bytes:
    head = {"kind": message.kind, "values": message.values, "lengths": [len(blob) for blob in message.blobs]}
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "big") + text + b"".join(message.blobs)


def _unpacked(data: bytes) -> Message:
    end = 8 + int.from_bytes(data[:8], "big")
    head = json.loads(data[8:end])
    blobs = []
    for length in head["lengths"]:
        blobs.append(data[end : end + length])
        end += length
    return Message(head["kind"], head["values"], tuple(blobs))


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _classes(value: object) -> set[type]:
    """Returns the classes of everything that a value holds, those of PyTorch left out."""
    found: set[type] = set() if isinstance(value, Tensor) else {type(value)}
    if isinstance(value, list | tuple):
        return found.union(*(_classes(item) for item in value))
    if isinstance(value, dict):
        return found.union(*(_classes(item) for item in value.values()))
    if isinstance(value, Tensor) or not hasattr(value, "__dict__"):
        return found
    return found.union(*(_classes(item) for item in vars(value).values()))
