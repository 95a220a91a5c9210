"""What a person sees."""

import io

import torch
from rich.console import Console

from headstart.training import progress
from headstart.training.loop import State, StepRecord
from headstart.types import Meta


def _record(step):
    return StepRecord(step, 0.5, 1.0, 0.1, State(Meta({}, {"a": torch.zeros(1)}), None, step))


def test_plain_lines_come_at_most_every_ten_seconds(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    view = progress.Plain()
    view.begin(100, 400, 4)
    for step in range(101, 401):
        now += 0.125
        view.step(_record(step), "validation mse 0.3")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("step 180/400  loss 0.5  validation mse 0.3  32 tasks/s  0:28 left")


def test_the_bar_ends_at_the_last_step(monkeypatch):
    view = progress.Live()
    view.console = Console(file=io.StringIO(), force_terminal=True, width=100)
    view.begin(0, 50, 4)
    for step in range(1, 51):
        view.step(_record(step), "validation mse 0.3")
    view.note("done [now]")
    view.close()
    view.close()
    text = view.console.file.getvalue()
    assert "50/50" in text and "loss 0.5" in text and "done [now]" in text


def test_a_terminal_gets_the_bar_and_a_file_plain_lines(monkeypatch):
    for terminal, kind in ((True, progress.Live), (False, progress.Plain)):
        monkeypatch.setattr(progress.sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        assert isinstance(progress.view(), kind)
