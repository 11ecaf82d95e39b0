"""The hub of Hugging Face, from which transformers and timm fetch networks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

#: seconds that the hub has to answer at all
PATIENCE_S = 3.0


def reachable() -> bool:
    """Whether the hub answers, whatever it says."""
    hub = importlib.import_module("huggingface_hub")
    try:
        hub.get_session().head(hub.constants.ENDPOINT, timeout=PATIENCE_S)
    except Exception:
        # The clients of the hub have come with errors of several libraries.
        return False
    return True


@contextmanager
def without_waiting() -> Iterator[None]:
    """Runs the body with what is on disk alone where the hub cannot be reached.

    Its client would try each file again and again, for half a minute.

    Raises:
        ConnectionError: the body fails, and the hub cannot be reached.
    """
    constants = importlib.import_module("huggingface_hub").constants
    if constants.HF_HUB_OFFLINE or reachable():
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except Exception as error:
        raise ConnectionError(f"{constants.ENDPOINT} cannot be reached, and it is not on this machine") from error
    finally:
        constants.HF_HUB_OFFLINE = False
