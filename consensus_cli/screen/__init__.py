"""What the user sees while a run goes on: a live view on a terminal, plain lines elsewhere, less, or JSON lines."""

from consensus_cli.screen.kinds import open_screen, take_kind
from consensus_cli.screen.plain import QuietScreen, Report, Screen

__all__ = ["QuietScreen", "Report", "Screen", "open_screen", "take_kind"]
