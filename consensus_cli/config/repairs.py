"""Words of a command line that cannot be read: what was probably meant, tried with Hydra's parser before it is shown.

Example:
    >>> unreadable("dataset.root=~/a (1)").hint
    'quote it for Hydra as well: \\'dataset.root="~/a (1)"\\''
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterator, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import grammar_parser
from omegaconf.errors import GrammarParseError

from consensus_cli.config import conf_files, schema
from consensus_cli.config.ranges import NAMES
from consensus_cli.config.value_types import expected
from consensus_cli.errors import UserError, nearest

#: typographic quotation marks, as word processors and web pages put them
_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'"})
_KEY = r"[A-Za-z_][\w./@-]*"
_SETTING = re.compile(rf"\s*[+~]*(?P<key>{_KEY})\s*(?::=|\+=|==|=|:)\s*(?P<value>.*)", re.DOTALL)
_TOLD = "settings are written key=value, such as ratio=0.5"


def parsed(word: str) -> Override | None:
    """Returns a word as Hydra reads it; None where it cannot."""
    try:
        (override,) = OverridesParser.create().parse_overrides([word])
    except (HydraException, ValueError):
        return None
    # `=0.5` is one for Hydra.
    return override if override.key_or_group else None


def quoted(key: str, value: str) -> str:
    """Returns the setting with its value in the quotes that Hydra takes off again."""
    return f"{key}={QuotedString(value, Quote.double).with_quotes()}"


def quoting_hint(key: str, value: str) -> str:
    """Returns how to write on a command line that the value is this text and nothing else."""
    return f"quote it for Hydra as well: {shlex.quote(quoted(key, value))}"


def takes_text(key: str) -> bool:
    """Says whether a value in quotes can be right for a key."""
    found = expected(key)
    return key.startswith(("hydra.", "model.kwargs.")) or (found is not None and found.text)


def names_something(key: str) -> bool:
    """Says whether a key's text is a name of the user's own, such as a file's, and not one of a few that we know."""
    return key in {*NAMES, "dataset.name"} or key.startswith(("evaluate.shift.", "hydra.", "model.kwargs."))


def unreadable(word: str) -> UserError:
    """Returns the mistake of a single word that Hydra cannot read, with what was probably meant."""
    return UserError(f"cannot read '{word}'", _hint(word))


def set_apart(words: Sequence[str]) -> list[UserError | str]:
    """Returns the words, with those that a blank around `=` tore apart as one mistake: `ratio = 0.5`, `ratio 0.5`."""
    found: list[UserError | str] = []
    index = 0
    while index < len(words):
        taken = _torn(words[index : index + 3])
        if taken:
            torn = " ".join(words[index : index + taken])
            whole = torn.replace(" ", "", 1) if "=" in torn else torn.replace(" ", "=", 1)
            found.append(UserError(f"cannot read '{torn}'", f"write it without blanks: {whole.replace(' ', '')}"))
        else:
            found.append(words[index])
        index += max(1, taken)
    return found


def _torn(words: Sequence[str]) -> int:
    """Returns how many of the first words are one setting with blanks in it; 0 if the first stands alone."""
    first, second, third = [*words, "", ""][:3]
    if not _is_key(first.removesuffix("=")):
        return 0
    if not first.endswith("="):
        if second == "=" and third and "=" not in third:
            return 3
        # `ratio 0.5`, `ratio =0.5`
        return 2 if second.startswith("=") or (second and "=" not in second and not _is_key(second)) else 0
    # `ratio=` alone is an empty value; a word without `=` behind it is one that was torn off.
    return 2 if second and "=" not in second else 0


def _is_key(text: str) -> bool:
    return text in set(schema.keys()) or text in schema.GROUPS


def _hint(word: str) -> str:
    if (option := _bare_option(word)) is not None:
        return f"did you mean {option}? {_TOLD}"
    if several := _several(word):
        return f"settings are words of their own: {shlex.join(several)}"
    for candidate in _candidates(word):
        if candidate != word and _is_right(candidate):
            key, _, value = candidate.partition("=")
            if value.startswith('"') and takes_text(key):
                return f"quote it for Hydra as well: {shlex.quote(candidate)}"
            return f"did you mean {shlex.quote(candidate)}? {_TOLD}"
    key = word.partition("=")[0]
    takes = expected(key)
    return f"{key} takes {takes.words}: write {key}={takes.form}" if takes is not None else _TOLD


def _bare_option(word: str) -> str | None:
    """Returns the setting that chooses an option whose name was given alone, such as `resnet56`."""
    if "=" in word:
        return None
    for group in schema.GROUPS:
        options = conf_files.choices(group)
        if word in options:
            return f"{group}={word}"
    options = conf_files.choices("model")
    close = nearest(word, options, cutoff=0.8)
    return f"model={close[0]}" if close else None


def _several(word: str) -> list[str]:
    """Returns the settings of a word that holds several of them; none if it does not."""
    parts = re.split(rf"[\s,;]+(?={_KEY}=)", word.strip())
    return parts if len(parts) > 1 and all(_is_right(part) for part in parts) else []


def _candidates(word: str) -> Iterator[str]:
    plain = _plain(word)
    for text in (plain, plain.strip("'\"` \t\n")):
        yield text
        if match := _SETTING.fullmatch(text):
            key, value = match["key"].replace("/", "."), match["value"].strip()
            bare = value.strip("'\"")
            # As in JSON, with quotes around the names.
            for attempt in (value, bare, re.sub(r"""(["'])(\w+)\1\s*:""", r"\2:", value)):
                yield f"{key}={attempt}"
            takes = expected(key)
            inner = bare.strip("[](){} ,;")
            if takes is not None and takes.listed:
                items = ",".join(re.split(r"[,;\s]+", inner))
                if "," in items:
                    yield f"{key}=[{items}]"
            if takes is not None and not takes.text and inner:
                yield f"{key}={inner}"
            if takes_text(key) or "${" in value:
                # As it was typed: accents and the like belong to names.
                typed = word.partition("=")[2].strip() if "=" in word else value
                yield quoted(key, _without_shell_quotes(typed))


def _plain(word: str) -> str:
    """Returns a word with full-width letters, other scripts' digits and typographic quotes as ASCII."""
    text = unicodedata.normalize("NFKC", word).translate(_QUOTES)
    # Invisible characters come along when text is copied from a page.
    visible = (c for c in text if unicodedata.category(c) != "Cf")
    return "".join(str(unicodedata.digit(c)) if c.isdigit() and not c.isascii() else c for c in visible)


def _without_shell_quotes(text: str) -> str:
    for mark in ("'", '"'):
        if len(text) > 1 and text.startswith(mark) and text.endswith(mark):
            return text[1:-1]
    return text


def _is_right(word: str) -> bool:
    """Says whether a word is a setting that is known, with a single value of the right kind."""
    override = parsed(word)
    if override is None or override.is_sweep_override():
        return False
    key = override.key_or_group
    takes = expected(key)
    if key in schema.GROUPS:
        return isinstance(override.value(), str) and override.value() in conf_files.choices(key)
    if takes is None:
        return key.startswith(("hydra.", "model.kwargs."))
    value = override.value()
    return _is_reference(value) if isinstance(value, str) and "${" in value else takes.fits(value)


def _is_reference(value: str) -> bool:
    try:
        grammar_parser.parse(value)
    except GrammarParseError:
        return False
    return True
