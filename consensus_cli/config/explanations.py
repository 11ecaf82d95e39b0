"""What Hydra, OmegaConf and YAML say of a configuration, in one line with a hint."""

from __future__ import annotations

import re
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from consensus_cli.config import repairs
from consensus_cli.config.value_types import Expected, expected
from consensus_cli.errors import UserError

#: what composing a configuration raises where the words, the environment or a config file of the user's are wrong
COMPOSING = (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError, OSError)

_TYPES = "consensus run --cfg job shows the types in use"


def explain(error: Exception) -> UserError:
    """Returns one of the exceptions in `COMPOSING` as the mistake that led to it."""
    if isinstance(error, YAMLError):
        return _of_yaml(error)
    if isinstance(error, UnicodeDecodeError):
        return UserError("a config file is not UTF-8", "save the YAML files of your config folder as UTF-8")
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return UserError(f"cannot read '{error.filename}': {error.strerror}", "is it spelled right?")
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    message = message.removesuffix(".").removesuffix(", set env var HYDRA_FULL_ERROR=1 to see chained exception")
    if message.startswith("Error merging override "):
        return _of_override(message.removeprefix("Error merging override ").removeprefix("++"), error)
    if isinstance(error, OmegaConfBaseException) and isinstance(error, InterpolationResolutionError | ValueError):
        return _of_interpolation(error, message)
    return _of_hydra(error, message)


def wrong_type(key: str, said: str, takes: Expected) -> UserError:
    """Returns the mistake of a value of another type than the key takes.

    Args:
        key: the dotted key.
        said: the value as it was given.
        takes: what the key takes.
    """
    problem = UserError(f"{key}={_quoted_text(said)} is not {takes.words}", f"write {key}={takes.form}; {_TYPES}")
    if repairs.names_something(key) and takes.text and said != "null":
        problem.hint = repairs.quoting_hint(key, said)
    elif takes.form.startswith("."):
        problem.hint = f"write {key}{takes.form}; {_TYPES}"
    return problem


def _quoted_text(said: str) -> str:
    return said if re.fullmatch(r"[-+\d.,\[\]{} eE]*|true|false|null|True|False|None", said) else f"'{said}'"


def _of_override(word: str, error: Exception) -> UserError:
    key, _, said = word.partition("=")
    takes = expected(key)
    if takes is not None:
        return wrong_type(key, said, takes)
    cause = str(error.__cause__ or error).splitlines()[0]
    shown = "consensus run --cfg hydra shows the types in use" if key.startswith("hydra") else _TYPES
    if match := re.search(r"of type '\w+' could not be converted to (Integer|Float)", cause):
        kind = "a whole number" if match[1] == "Integer" else "a number"
        return UserError(f"{key}={_quoted_text(said)} is not {kind}", shown)
    return UserError(f"{word}: {cause}", shown)


def _of_interpolation(error: OmegaConfBaseException, message: str) -> UserError:
    key = str(error.full_key or error.key or "a setting")
    if match := re.search(r"Environment variable '(.+?)' not found", message):
        name = match[1]
        instead = f"'${{oc.env:{name},VALUE}}'"
        return UserError(
            f"{key}: the environment variable {name} is not set", f"set it, or say what stands in its place: {instead}"
        )
    if match := re.search(r"Interpolation key '(.+?)' not found", message):
        return UserError(
            f"{key}: there is no setting '{match[1]}' to take the value of",
            "write ${oc.env:NAME} for an environment variable, \\$ for a dollar sign",
        )
    if match := re.search(r"While dereferencing interpolation '(.+?)': (?:Value '(.*?)'|(.*))", message):
        takes = expected(key)
        told = f"'{match[2]}' is not {takes.words}" if takes is not None and match[2] is not None else match[0]
        listed = f"; a list is written '{key}=\"${{oc.decode:${{oc.env:NAME}}}}\"'"
        return UserError(f"{key}: {told}", f"that is what {match[1]} gives{listed if takes and takes.listed else ''}")
    plain = re.sub(r"^\w+ raised while resolving interpolation: ", "", message)
    return UserError(f"{key}: {plain}", "the value refers to others with ${…}; write it out, or mend the reference")


def _of_hydra(error: Exception, message: str) -> UserError:
    further = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
    if isinstance(error, MissingConfigException):
        return UserError(message.rstrip("."), _options(further) or "is it spelled right, and in the folder given?")
    if match := re.match(r"Could not (?:override|append to|delete) '(.+?)'", message):
        key = match[1]
        shown = "hydra --package hydra.launcher" if key.startswith("hydra.launcher") else "hydra"
        return UserError(
            f"unknown setting of Hydra's '{key}'" if key.startswith("hydra") else f"cannot set '{key}'",
            f"consensus run --cfg {shown if key.startswith('hydra') else 'job'} shows what can be set",
        )
    if message.startswith("In '") and "while composing config" in message and further:
        place = message.split(":", maxsplit=1)[0]
        return UserError(f"{place}: {further[0]}", "consensus run --cfg job shows what can be set")
    return UserError(message.rstrip("."), further[0] if further else "consensus run --cfg job shows what can be set")


def _options(lines: list[str]) -> str | None:
    """Returns the options that Hydra lists behind what it did not find."""
    if not lines or not lines[0].startswith("Available options"):
        return None
    named = [line for line in lines[1:] if not line.startswith(("Config search path", "provider="))]
    return f"valid: {', '.join(named)}"


def _of_yaml(error: YAMLError) -> UserError:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    if mark is None:
        return UserError(f"a config file is not YAML: {str(error).splitlines()[0]}", "mend the file")
    problem = error.problem if isinstance(error, MarkedYAMLError) else None
    place = f"{Path(mark.name).name}, line {mark.line + 1}, column {mark.column + 1}"
    return UserError(f"a config file is not YAML: {problem} ({place})", "mend the file; it is indented with blanks")
