"""PyTorch's pickled files read without their code: objects of foreign classes become stand-ins that do nothing.

Training checkpoints hold more than tensors: the arguments of the run, a NumPy scalar, a schedule. PyTorch's reader of
plain data (`torch.load(weights_only=True)`) refuses a whole file for one of them. Here each foreign class or function
that the file names is registered under a stand-in of ours, which takes any arguments and any state and keeps neither;
the file's own code is never imported, and nothing in it is called.
"""

from __future__ import annotations

import builtins
import contextlib
import inspect
import pickle
import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import torch

from consensus_cli.errors import UserError

#: modules that no data need: a file that names one of their functions is not only a checkpoint; `commands` is how the
#: old protocol, which torch.save writes, calls `subprocess`
_CODE = {"commands", "importlib", "os", "posix", "nt", "runpy", "shutil", "socket", "subprocess", "sys", "webbrowser"}

_REFUSED = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module)")


class Foreign:
    """Stands for an object of a class that is not loaded; it holds nothing.

    Attributes:
        path: dotted name of the foreign class.
        plain: what an object of it becomes where PyTorch's reader has to fill it: it fills plain containers only.
    """

    path: ClassVar[str]
    plain: ClassVar[type | None] = None

    def __new__(cls, *_args: object, **_options: object) -> Any:
        """Takes what the foreign constructor would."""
        return super().__new__(cls) if cls.plain is None else cls.plain()

    def __setstate__(self, state: object) -> None:
        """Takes what the foreign object would and drops it."""


#: word in PyTorch's message (before 2.9: Python's) about a stand-in that it cannot fill -> what it can fill; an ordered
#: one takes attributes
_FILLED = {"SETITEM": OrderedDict, "item assignment": OrderedDict, "append": list, "extend": list}


def load_inert(path: Path) -> object:
    """Returns what a file of `torch.save` holds, on the CPU, with stand-ins for all but plain data and tensors.

    Raises:
        UserError: the file names a function of the interpreter or the operating system.
        pickle.UnpicklingError: torch.save did not write the file.
    """
    stand_ins: dict[str, type[Foreign]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while True:
            try:
                # Not the path: PyTorch would go by its suffix.
                with (
                    torch.serialization.safe_globals([(kind, name) for name, kind in stand_ins.items()]),
                    path.open("rb") as file,
                ):
                    return torch.load(file, "cpu", weights_only=True)
            except (pickle.UnpicklingError, TypeError) as error:
                more = _more_stand_ins(path, str(error), stand_ins)
                for name in more:
                    _check_harmless(path, name)
                if not more:
                    raise
                stand_ins |= more


def _more_stand_ins(path: Path, text: str, known: dict[str, type[Foreign]]) -> dict[str, type[Foreign]]:
    """Returns the stand-ins without which reading failed, judged by what PyTorch said; empty: nothing helps."""
    if refused := _REFUSED.search(text):
        # PyTorch leaves `builtins.` out of the message.
        name = refused[1] if "." in refused[1] else f"builtins.{refused[1]}"
        names = {name}
        # All that a zip file names at once: reading the tensors again for each would take its time.
        with contextlib.suppress(ValueError, pickle.UnpicklingError):
            names |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        return {name: _stand_in(name) for name in names - set(known)}
    for name, kind in known.items():
        plain = next((plain for word, plain in _FILLED.items() if word in text), None)
        if (str(kind) in text or f"'{name}'" in text) and kind.plain is None and plain is not None:
            return {name: _stand_in(name, plain)}
    return {}


def _stand_in(path: str, plain: type | None = None) -> type[Foreign]:
    return type(path, (Foreign,), {"path": path, "plain": plain})


def _check_harmless(path: Path, name: str) -> None:
    module, _, attribute = name.partition(".")
    function = module == "builtins" and not inspect.isclass(getattr(builtins, attribute, None))
    if function or module in _CODE:
        raise UserError(
            f"checkpoint {path} may run code when loaded ({name}), so it is refused",
            "save the state dict alone (torch.save(model.state_dict(), …)) or as safetensors",
        )
