"""The application: which commands there are, and what becomes of errors."""

import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

from cyclopts import App, CycloptsError

import headstart
from headstart.errors import HeadstartError

#: Each command with the function that it is; the help text stands here so that listing imports none of them.
COMMANDS = {
    "train": ("headstart.cli.train:train", "Meta-train on a family of tasks, or go on with a run."),
    "evaluate": ("headstart.cli.evaluate:evaluate", "Judge a run on fixed tasks: mean and 95 % interval."),
    "compare": ("headstart.cli.compare:compare", "Train several methods on the same tasks, and compare them."),
    "adapt": ("headstart.cli.adapt:adapt", "Learn new classes from a folder, or a new task from a table."),
    "predict": (
        "headstart.cli.adapt:predict",
        "Predict with what adapt has learned: labels of images, or rows of a table.",
    ),
    "report": ("headstart.cli.evaluate:report", "Draw a run's pictures and write its model card again."),
    "list": ("headstart.cli.listing:listing", "List methods, tasks, models or kinds of data."),
}

#: Commands whose options, and so whose help, depend on their words.
_READ_THEMSELVES = ("train", "compare")

USAGE = 2


def make_app() -> App:
    """Return the application."""
    app = App(
        name="headstart",
        help="Meta-learning: from many small tasks, learn the head start from which a new one takes a few examples.",
        version=headstart.__version__,
        help_format="plaintext",
        help_epilogue="Every command takes --help, and --traceback, which shows where an error comes from.",
    )
    for name, (target, help_text) in COMMANDS.items():
        own: dict[str, Any] = {"help_flags": []} if name in _READ_THEMSELVES else {}
        app.command(target, name=name, help=help_text, **own)
    return app


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 well, 1 failure, 2 usage, 3 data, 128 + n where signal n stopped it.

    Args:
        arguments: the words after ``headstart``; by default those that the process was started with.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in words
    sys.exit(run([word for word in words if word != "--traceback"], show_traceback))


def run(words: Sequence[str], show_traceback: bool = False) -> int:
    """Run a command and return its exit code; an error is one or two lines on standard error."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            result: Any = make_app()(words, exit_on_error=False, print_error=False, result_action="return_value")
            return result if isinstance(result, int) else 0
        except (HeadstartError, CycloptsError) as error:
            if show_traceback:
                traceback.print_exc()
            print(f"error: {error if isinstance(error, HeadstartError) else _told(error, words)}", file=sys.stderr)
            return error.exit_code if isinstance(error, HeadstartError) else USAGE
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:
            sys.stderr.close()
            return 1
        except Exception as error:  # a fault of ours: say so, and where the details are
            if show_traceback:
                traceback.print_exc()
            print(
                f"error: {type(error).__name__}: {error}\nthis is unexpected; --traceback shows where it comes from",
                file=sys.stderr,
            )
            return 1


def _told(error: CycloptsError, words: Sequence[str]) -> str:
    command = f" {words[0]}" if words and words[0] in COMMANDS else ""
    return f"{' '.join(str(error).split())} See headstart{command} --help."


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"warning: {message}", file=sys.stderr)
