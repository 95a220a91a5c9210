"""What a person sees while a run goes on: a live line on a terminal, else a plain line now and then."""

import sys
import time
from contextlib import suppress
from typing import Any

from headstart.training.loop import StepRecord

LIVE_SECONDS = 0.25
PLAIN_SECONDS = 10.0


class View:
    """Where a run reports to; this one reports nothing."""

    def named(self, name: str) -> "View":
        """Return a view for one of several runs at the same time, each in a process of its own."""
        return View()

    def note(self, text: str) -> None:
        """Say something that matters once."""

    def begin(self, done: int, steps: int, tasks_per_step: int) -> None:
        """Begin to count steps."""
        self.first, self.steps, self.tasks_per_step = done, steps, tasks_per_step
        self.started = self.shown = time.monotonic()

    def step(self, record: StepRecord, validation: str) -> None:
        """Report a step, and the latest validation score."""

    def close(self) -> None:
        """End a live line."""

    def said(self, record: StepRecord, validation: str) -> str:
        """Return what there is to say of a step."""
        self.shown = time.monotonic()
        pace = (self.shown - self.started) / (record.step - self.first)
        left = clock((self.steps - record.step) * pace)
        return f"loss {record.loss:.4g}  {validation}  {self.tasks_per_step / pace:.0f} tasks/s  {left} left"


class Plain(View):
    """Plain lines on standard error, at most one in ten seconds while steps are taken."""

    def __init__(self, name: str = "") -> None:
        self.before = f"{name}: " if name else ""

    def named(self, name: str) -> View:
        """Return one whose lines begin with the name."""
        return Plain(name)

    def note(self, text: str) -> None:
        """Print a line."""
        with suppress(OSError):  # a terminal that was closed must not end the run
            print(self.before + text, file=sys.stderr, flush=True)

    def step(self, record: StepRecord, validation: str) -> None:
        """Print a line if the last one is ten seconds old."""
        if time.monotonic() - self.shown >= PLAIN_SECONDS:
            self.note(f"step {record.step}/{self.steps}  {self.said(record, validation)}")


class Live(View):
    """A bar on the terminal, drawn at most four times a second."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.bar: Any = None

    def named(self, name: str) -> View:
        """Return plain lines: several bars would write over one another."""
        return Plain(name)

    def note(self, text: str) -> None:
        """Print a line, above the bar where there is one."""
        with suppress(OSError):
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin(self, done: int, steps: int, tasks_per_step: int) -> None:
        """Show the bar."""
        from rich.progress import BarColumn, Progress, TextColumn

        super().begin(done, steps, tasks_per_step)
        words = TextColumn("step {task.completed:.0f}/{task.total:.0f}"), TextColumn("{task.fields[said]}")
        self.bar = Progress(words[0], BarColumn(), words[1], console=self.console, refresh_per_second=4)
        self.task = self.bar.add_task("", total=steps, completed=done, said="")
        self.bar.start()

    def step(self, record: StepRecord, validation: str) -> None:
        """Move the bar, unless it has just moved."""
        if time.monotonic() - self.shown >= LIVE_SECONDS or record.step >= self.steps:
            with suppress(OSError):
                self.bar.update(self.task, completed=record.step, said=self.said(record, validation))

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            with suppress(OSError):
                self.bar.stop()
            self.bar = None


def view() -> View:
    """Return the live view on a terminal, the plain one elsewhere."""
    return Live() if sys.stderr.isatty() else Plain()


def clock(seconds: float) -> str:
    """Return a time span as hours, minutes and seconds.

    >>> clock(3725)
    '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
