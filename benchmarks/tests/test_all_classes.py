"""All classes at once, of a few made-up sentences."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.all_classes import Said, adapted, drawn, table

TOPICS = {"lost_card": "card", "cash_machine": "cash", "exchange_rate": "euro", "open_account": "account"}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    for file, count in (("train", 5), ("test", 3)):
        rows = [f"{file} number {n} is about my {word},{name}" for name, word in TOPICS.items() for n in range(count)]
        (tmp_path / f"{file}.csv").write_text("\n".join(["text,category", *rows]))
    return tmp_path


def test_so_many_are_drawn_of_each_class_and_none_of_them_is_asked(data: Path) -> None:
    problem, again, other = (drawn(data, 2, seed, False) for seed in (0, 0, 1))
    assert problem.names == tuple(sorted(TOPICS)) and problem.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert problem.texts == again.texts != other.texts
    assert len(problem.queries) == 12 and all(text.startswith("test") for text in problem.queries)
    held = drawn(data, 2, 0, True)
    assert held.texts == problem.texts and len(held.queries) == 12 and not {*held.queries} & {*held.texts}
    assert all(TOPICS[held.names[answer]] in text for text, answer in zip(held.queries, held.answers, strict=True))


def test_what_headstart_says_is_held_against_the_answers(data: Path) -> None:
    problem = drawn(data, 2, 0, False)
    assert adapted("ngrams", problem, None).right.all()
    wrong = problem._replace(answers=(problem.answers + 1) % 4)
    assert not adapted("ngrams", wrong, None).right.any()


@pytest.mark.parametrize(("by_task", "told"), [(False, "25.0 ± 32.1"), (True, "25.0 ± 49.0")])
def test_differences_are_of_the_same_sentences_or_tasks(by_task: bool, told: str) -> None:
    ours = [Said(np.array(right), 1.0, 2.0) for right in ([True] * 4, [True, True, False, False])]
    theirs = [Said(np.array(right), 3.0, 2.0) for right in ([True, True, False, False], [True, True, False, False])]
    lines = table({"theirs": theirs, "ours": ours}, "ours", by_task).splitlines()
    assert lines[2] == f"| theirs | 50.0 (50.0 to 50.0) | {told} | 3.0 | 2.0 |"
    assert lines[3] == "| ours | 75.0 (50.0 to 100.0) |  | 1.0 | 2.0 |"
