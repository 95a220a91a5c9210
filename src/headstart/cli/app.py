"""The application: from words to a command, and what becomes of errors."""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from cyclopts import App, CycloptsError

import headstart
from headstart.cli.commands import COMMANDS
from headstart.cli.output import printable, spell_out
from headstart.errors import HeadstartError, asked_for, is_out_of_memory

USAGE = 2
#: Commands whose help depends on their words.
OF_THEIR_WORDS = ("train", "soak", "compare", "sweep", "matrix", "evaluate", "adapt")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 well, 1 failure, 2 usage, 3 data, 128 + n where signal n stopped it.

    Args:
        arguments: the words after ``headstart``; by default those that the process was started with.
    """
    spell_out()
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run([word for word in words if word != "--traceback"], "--traceback" in words))


def run(words: Sequence[str], show_traceback: bool = False) -> int:
    """Run a command and return its exit code; an error is one or two lines on standard error."""
    app = App(
        name="headstart",
        help="Meta-learning: from many small tasks, learn the head start from which a new one takes a few examples.",
        version=headstart.__version__,
        help_format="plaintext",
        help_epilogue="Every command takes --help, and --traceback, which shows where an error comes from.",
    )
    for name, command in COMMANDS.items():
        own: dict[str, Any] = {"help_flags": []} if name in OF_THEIR_WORDS else {}
        app.command(command, name=name, **own)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            result: Any = app(words, exit_on_error=False, print_error=False, result_action="return_value")
            sys.stdout.flush()
            return result if isinstance(result, int) else 0
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:
            sys.stderr.close()
            return 1
        except Exception as error:
            if show_traceback:
                traceback.print_exc()
            if isinstance(error, HeadstartError):
                told, code = str(error), error.exit_code
            elif isinstance(error, CycloptsError):
                command = f" {words[0]}" if words and words[0] in COMMANDS else ""
                told, code = f"{' '.join(str(error).split())} See headstart{command} --help.", USAGE
            elif isinstance(error, OSError):  # of a path that nobody has looked at, or of what is printed
                told, code = f"cannot use {error.filename or 'the standard output'}: {error.strerror}", 1
                if error.filename is None:
                    _let_go()
            elif is_out_of_memory(error):
                told, code = (
                    f"not enough memory ({asked_for(error)}); take fewer or smaller layers, examples or tasks",
                    1,
                )
            else:  # a fault of ours: say so, and where the details are
                told, code = f"{type(error).__name__}: {error}", 1
                told += "\nthis is unexpected; --traceback shows where it comes from"
            print(f"error: {printable(told)}", file=sys.stderr)
            return code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {printable(str(message))}", file=sys.stderr)


def _let_go() -> None:
    """Let what was printed and cannot be written go, lest it fail again when the process ends."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
