"""What the user sees while a run goes on: a live view on a terminal, plain lines elsewhere, less, or JSON lines."""

from __future__ import annotations

from rich.console import Console

from consensus_cli.screen.json_lines import JsonScreen
from consensus_cli.screen.live import LiveScreen
from consensus_cli.screen.plain import QuietScreen, Report, Screen

__all__ = ["QuietScreen", "Report", "Screen", "open_screen"]


def open_screen(kind: str = "auto", *, alone: bool = True) -> Screen:
    """Returns a screen on standard output.

    Args:
        kind: `none`, `quiet`, `json`, or `auto`: live on a terminal, plain lines elsewhere.
        alone: whether no other process writes there at the same time; a live view must be alone.
    """
    if kind == "json":
        return JsonScreen()
    console = Console(soft_wrap=True, highlight=False, quiet=kind == "none")
    if kind in ("none", "quiet"):
        return QuietScreen(console)
    return LiveScreen(console) if console.is_terminal and alone else Screen(console)
