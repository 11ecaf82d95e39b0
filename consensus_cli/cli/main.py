"""The `consensus` command: from words to a command, and from what it raises to an exit code."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from consensus_cli import __version__
from consensus_cli.cli.commands import COMMANDS
from consensus_cli.cli.fast_imports import fit_environment
from consensus_cli.cli.parser import Command, Parser
from consensus_cli.errors import InterruptedRunError, ToldError, UserError, packages_told, tell, unknown_name

#: what all processes of a job do together
_JOINT = ("run", "resume", "score")

_EPILOG = """\
examples:
  consensus run model=resnet56 ratio=0.5
  consensus run -m model=resnet32,resnet56 ratio=0.25,0.5 seed=0,1
  consensus report --help

settings are written key=value; what there is to set, with the defaults: consensus run --cfg job
groups: model dataset baseline metrics criterion prune finetune attacks evaluate experiment budget

exit codes: 0 done, 1 a bug or a failed run, 2 a mistake in what was asked for, 130 and 143 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with the given words (the process's own unless given) and returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # On a machine with a CUDA toolkit and no GPU, PyTorch's benchmark module warns when it is imported.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    fit_environment()
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with packages_told():
            code = _answer(words, debug)
        sys.stdout.flush()
        return code
    except ToldError as error:
        if _speaks(error):
            tell(error, debug=debug)
        return 2 if isinstance(error, UserError) else 1
    except InterruptedRunError as stop:
        if not _follows() and _speaks(stop):
            sys.stderr.write(f"interrupted by {stop}; continue with: consensus resume {stop.run_dir}\n")
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        if not _follows():
            sys.stderr.write("interrupted\n")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read the output has closed it (`consensus list models | head -1`): nobody is left to read more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        # Its traceback is the one message.
        _speaks(error)
        raise


def _answer(words: list[str], debug: bool) -> int:
    """Runs the command, or shows the help or the version that was asked for in its place."""
    name = words[0] if words else "--help"
    if name == "help":
        name, words = (words[1], ["--help"]) if len(words) > 1 else ("--help", [])
    if name in ("-h", "--help"):
        return _show(_help())
    if "--version" in words:
        return _show(f"consensus {__version__}\n")
    if name not in COMMANDS:
        unknown = _unknown_command(name)
        # All processes of a job get the same words.
        unknown.shared = True
        raise unknown
    if {"-h", "--help"} & set(words):
        return _show(COMMANDS[name].parser().format_help())
    return _start(COMMANDS[name], words[1:], debug)


def _show(text: str) -> int:
    if not _follows():
        sys.stdout.write(text)
    return 0


def _help() -> str:
    parser = Parser("consensus", "Layer pruning by the consensus of similarity metrics.", _EPILOG)
    commands = parser.add_subparsers(title="commands, each with a --help of its own", metavar="COMMAND")
    for name, command in COMMANDS.items():
        summary = (command.answer.__doc__ or "").partition("\n")[0]
        commands.add_parser(name, prog=name, description="", epilog="", help=summary)
    parser.add_argument("--version", action="store_true", help="show the version")
    parser.add_argument("--debug", action="store_true", help="with any command: the traceback behind an error, too")
    return parser.format_help()


def _unknown_command(word: str) -> UserError:
    if word.startswith("-"):
        return UserError(f"unknown option '{word}'", "options stand behind the command: consensus run --quiet …")
    if "=" in word:
        return UserError(f"'{word}' is a setting, not a command", f"consensus run {shlex.quote(word)}")
    return unknown_name("command", word, COMMANDS)


def _start(command: Command, words: list[str], debug: bool) -> int:
    """Runs a command, in a job of several processes in all of them if it runs something, else in the first."""
    world = os.environ.get("WORLD_SIZE", "1")
    if not world.isascii() or not world.isdigit():
        raise UserError(f"WORLD_SIZE={world} in the environment is not a number", "unset it: torchrun sets it itself")
    if not _in_a_job():
        return command(words, debug=debug)
    if command.name not in _JOINT:
        return 0 if _follows() else command(words, debug=debug)
    from torch import distributed

    from consensus_cli.experiment.distributed import join

    code = command(words, join(), debug=debug)
    distributed.destroy_process_group()
    return code


def _in_a_job() -> bool:
    # Asked here: joining the others imports PyTorch.
    world = os.environ.get("WORLD_SIZE", "1")
    return world.isascii() and world.isdigit() and int(world) > 1


def _follows() -> bool:
    """Returns whether this is one of a job's processes and not the first, which speaks for all."""
    return os.environ.get("RANK", "0") != "0"


def _speaks(error: BaseException) -> bool:
    if not _in_a_job():
        return True
    from consensus_cli.experiment.distributed import speaks

    return speaks(error)
