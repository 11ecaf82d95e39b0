"""Mistakes in settings, each in one line with a hint: the key, what was given, and what it takes or is called."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf.errors import InterpolationResolutionError, InterpolationValidationError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from consensus_cli.config import conf_files, schema
from consensus_cli.config.options import find, keys
from consensus_cli.errors import UserError, did_you_mean, nearest

#: what composing a configuration raises where the words, the environment or a config file of the user's are wrong
COMPOSING = (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError)

#: what other tools call a key -> its last part here, or all of it
_ELSEWHERE = {"lr": "learning_rate", "wd": "weight_decay", "bs": "batch_size", "gpu": "device", "out": "output_dir"}
_ELSEWHERE |= {"eps": "eps255", "epsilon": "eps255"}
_ELSEWHERE |= dict.fromkeys(("checkpoint", "ckpt", "pretrained"), "model.weights") | {"path": "dataset.root"}


def parsed(word: str) -> Override | None:
    """Returns a word as Hydra reads it; None where it cannot."""
    try:
        (override,) = OverridesParser.create().parse_overrides([word])
    except (HydraException, ValueError):
        return None
    # `=0.5` is an override without a key for Hydra.
    return override if override.key_or_group else None


def quoted(key: str, value: str) -> str:
    """Returns the setting with its value in the quotes that Hydra takes off again."""
    return f"{key}={QuotedString(value, Quote.double).with_quotes()}"


def quoting_hint(key: str, value: str) -> str:
    """Returns how to write on a command line that the value is this text and nothing else."""
    return f"quote it for Hydra as well: {shlex.quote(quoted(key, value))}"


def unreadable(words: Sequence[str]) -> UserError:
    """Returns the mistake of words, one behind the other, that Hydra cannot read."""
    key, _, value = words[0].partition("=")
    option = find(key.strip())
    hint = "settings are written key=value without blanks, such as ratio=0.5, and values with blanks quoted: 'key=a b'"
    if "=" not in words[0]:
        groups = [group for group in schema.GROUPS if words[0] in conf_files.choices(group)]
        hint = f"did you mean {groups[0]}={words[0]}? {hint}" if groups and len(words) == 1 else hint
    elif key.startswith("hydra.") or (option and (option.text or option.own)) or re.search(r"\$\{.*\}", value):
        hint = quoting_hint(key, value)
    elif option is not None:
        hint = f"{key.strip()} takes {option.words}: write {key.strip()}={option.form}; {hint}"
    return UserError(f"cannot read '{' '.join(words)}'", hint)


def wrong_type(key: str, said: str) -> UserError:
    """Returns the mistake of a value, as it was given, of another type than the key takes."""
    option = find(key)
    plain = re.fullmatch(r"[-+\d.,\[\]{} eE]*|true|false|null|True|False|None", said)
    problem = f"{key}={said if plain else repr(said)}"
    if option is None:
        return UserError(f"{problem} has the wrong type", _shown(key))
    hint = f"write {key}={option.form}; {_shown(key)}"
    if option.own and option.text and said != "null":
        hint = quoting_hint(key, said)
    return UserError(f"{problem} is not {option.words}", hint)


def unknown_key(key: str) -> UserError:
    """Returns the mistake of a key that does not exist, with the nearest that do."""
    parent, _, last = key.replace("/", ".").rpartition(".")
    last = _ELSEWHERE.get(last.lower(), last)
    node = find(parent) if parent else None
    below = [f"{parent}.{name}" for name in keys(node.kind)] if node and hasattr(node.kind, "__mro__") else []
    siblings = below or [name for name in keys() if "." not in name]
    meant: list[str] = [last] if last in set(keys()) else []
    for known in (siblings, list(keys())):
        names = [name.rpartition(".")[2] for name in known]
        close = [last] if last in names else nearest(last, names)[:1]
        meant = meant or [whole for whole, name in zip(known, names, strict=True) if name in close]
    return UserError(f"unknown config key '{key}'", f"{did_you_mean(meant[:3])}valid here: {', '.join(siblings)}")


def explain(error: Exception) -> UserError:
    """Returns one of the exceptions in `COMPOSING` as the mistake that led to it."""
    if isinstance(error, YAMLError | UnicodeDecodeError) or not isinstance(
        error, HydraException | OmegaConfBaseException
    ):
        return _of_file(error)
    message, *further = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    message = re.sub(r"(, set env var HYDRA_FULL_ERROR.*|\.)$", "", message)
    if match := re.fullmatch(r"Error merging override \+*(.+?)=(.*)", message, re.DOTALL):
        return wrong_type(*match.groups())
    if isinstance(error, OmegaConfBaseException) and isinstance(error, InterpolationResolutionError | ValueError):
        return _of_reference(error, message)
    if message.startswith("In '") and "while composing config" in message and further:
        message = f"{message.partition(':')[0]}: {further.pop(0)}"
    unhelpful = ("Config search path", "provider=", "object", "To append to your config")
    listed = [line for line in further if not line.startswith(unhelpful)]
    hint = ", ".join([*listed, _shown(f"{message} {listed}")]).replace(":,", ":")
    return UserError(message, hint)


def _of_file(error: Exception) -> UserError:
    if isinstance(error, YAMLError):
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        place = f" ({Path(mark.name).name}, line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        return UserError(f"a config file is not YAML: {str(error).splitlines()[0]}{place}", "mend the file")
    if isinstance(error, OSError):
        return UserError(f"cannot read '{error.filename}': {error.strerror}", "is it spelled right?")
    return UserError("a config file is not UTF-8", "save the YAML files of your config folder as UTF-8")


def _of_reference(error: OmegaConfBaseException, message: str) -> UserError:
    key = str(error.full_key or error.key or "a setting")
    option = find(key)
    value = re.search(r"'(.+?)': Value '(.*?)'", message)
    if isinstance(error, InterpolationValidationError) and option is not None and value is not None:
        return UserError(f"{key}: '{value[2]}' is not {option.words}", f"that is what {value[1]} gives")
    said = re.sub(r"^.*?(raised while resolving interpolation|dereferencing interpolation .*?): ", "", message).strip(
        '"'
    )
    hint = "the value refers to others with ${…}: mend it, give a default with ${oc.env:NAME,VALUE}, or write it out"
    return UserError(f"{key}: {said}", hint)


def _shown(key: str) -> str:
    return f"consensus run --cfg {'hydra' if 'hydra' in key else 'job'} shows what can be set, and its types"
