"""What `model.target` names: a class or function of the user's that makes a network, found wherever Python finds it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from consensus_cli.errors import UserError, foreign_code, unknown_name
from consensus_cli.models.paths import expanded

_HOW = "write model.target=package.module.Class or model.target=path/to/file.py:Class"


def find_target(target: str) -> Any:
    """Returns the class or function that a target names.

    What `python -m consensus_cli` finds, the console script finds as well: the working folder is put on `sys.path`.

    Args:
        target: `package.module.Class`, or `path/to/file.py:Class`; a name within a class follows after another dot.

    Raises:
        UserError: there is no such module or name, importing it fails, or it cannot be called.
    """
    path, colon, name = target.rpartition(":")
    if colon and path.endswith(".py"):
        module, names = _module_of_file(target, expanded(path)), name.split(".")
    elif target.endswith(".py"):
        raise UserError(f"model.target={target} names a file and no class in it", f"write model.target={target}:Class")
    else:
        module, names = _module_of_name(target)
    found: Any = module
    for name in names:
        if not hasattr(found, name):
            raise unknown_name(f"name in {target}:", name, _makers(found))
        found = getattr(found, name)
    if isinstance(found, nn.Module):
        raise UserError(
            f"model.target={target} is a network, not what makes one: its weights and state would be shared",
            f"name its class, {type(found).__module__}.{type(found).__qualname__}, or a function that returns it",
        )
    if isinstance(found, ModuleType):
        made = ", ".join(_makers(found)[:10]) or "none is defined in it"
        raise UserError(f"model.target={target} is a module, not a class", f"name a class or function in it: {made}")
    if not callable(found):
        raise UserError(
            f"model.target={target} is of type {type(found).__name__}, neither a class nor a function", _HOW
        )
    if _is_pythons_own(found):
        # A run directory, which may come from someone else, names its target: it must not call `os.system`.
        raise UserError(f"model.target={target} is Python's own and makes no torch.nn.Module", _HOW)
    return found


def _is_pythons_own(found: Any) -> bool:
    module = str(getattr(found, "__module__", None) or "").partition(".")[0]
    return (inspect.isroutine(found) or inspect.isclass(found)) and module in {*sys.stdlib_module_names, "builtins"}


@contextmanager
def program_goes_on(what: str) -> Iterator[None]:
    """Reports user-given code in the body that ends the program, as scripts do, like a mistake.

    Raises:
        UserError: the code called `sys.exit`.
    """
    try:
        yield
    except SystemExit as error:
        raise UserError(
            f"{what} ended the program: sys.exit({error.code!r})",
            "keep what a script does behind: if __name__ == '__main__'",
        ) from error


def _module_of_name(target: str) -> tuple[Any, list[str]]:
    """Returns the innermost module in a dotted name, and the names that follow it."""
    parts = target.replace(":", ".").split(".")
    if not all(part.isidentifier() for part in parts):
        raise UserError(f"model.target={target} is not the name of a class", _HOW)
    _put_working_folder_on_path()
    module = _imported(target, parts[0])
    names = parts[1:]
    # Only packages hold modules.
    while names and hasattr(module, "__path__") and not hasattr(module, names[0]):
        inner = f"{module.__name__}.{names[0]}"
        if importlib.util.find_spec(inner) is None:
            break
        module, names = _imported(target, inner), names[1:]
    return module, names


def _imported(target: str, name: str) -> ModuleType:
    doing = f"model.target={target}: importing {name}"
    try:
        with program_goes_on(doing), foreign_code(doing, "mend the module, or install what it imports"):
            return importlib.import_module(name)
    except UserError as error:
        if isinstance(error.__cause__, ModuleNotFoundError) and error.__cause__.name == name:
            raise UserError(
                f"model.target={target} cannot be imported: there is no module '{name}' in this folder, on PYTHONPATH "
                "or installed",
                "start the command in the folder that holds it, or write model.target=path/to/file.py:Class",
            ) from error
        raise


def _module_of_file(target: str, path: Path) -> ModuleType:
    """Returns the module that a file holds; what lies beside it can be imported, as when a script is run."""
    if not path.is_file():
        raise UserError(f"model.target={target}: there is no file {path}", "is the path spelled right?")
    path = path.resolve()
    # Not its stem: a module of that name may be installed.
    name = f"{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses and pickles look their module up.
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    doing = f"model.target={target}: importing {path.name}"
    try:
        with program_goes_on(doing), foreign_code(doing, "mend the file, or install what it imports"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _put_working_folder_on_path() -> None:
    """What Python does itself for `python -m`, and not for a console script."""
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)


def _makers(scope: Any) -> list[str]:
    """Returns the names of the networks in a module or class, and of the functions that it defines itself."""
    own = getattr(scope, "__name__", None)
    return sorted(
        name
        for name, value in vars(scope).items()
        if not name.startswith("_")
        and (
            (inspect.isclass(value) and issubclass(value, nn.Module))
            or (inspect.isfunction(value) and value.__module__ == own)
        )
    )
