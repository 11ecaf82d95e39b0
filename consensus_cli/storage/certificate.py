"""The certificate of a run on disk: what it vouches for of the network that it saved, and of each export of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from consensus_cli.storage.atomic import write_atomic
from consensus_cli.storage.rundir import RunDir


def write_certificate(files: RunDir, content: Mapping[str, Any]) -> None:
    """Writes the certificate of a run; exports that it had are gone with the network that they were of."""
    write_atomic(files.certificate, json.dumps({"format": 1, **content}, indent=2) + "\n")


def add_export(files: RunDir, form: str, entry: Mapping[str, Any]) -> None:
    """Adds an export to the certificate of a run, in place of an earlier one of its format."""
    content = read_certificate(files)
    write_certificate(files, content | {"exports": content.get("exports", {}) | {form: dict(entry)}})


def read_certificate(files: RunDir) -> dict[str, Any]:
    """Returns the certificate of a run; empty where an earlier version wrote the run, or it is lost."""
    try:
        content = json.loads(files.certificate.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
