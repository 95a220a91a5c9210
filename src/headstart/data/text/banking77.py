"""BANKING77: what customers of a bank ask, in 77 intents."""

from pathlib import Path
from typing import Annotated, Any, TypeAlias

from annotated_types import Ge, Le

from headstart.data.random import SPLITS
from headstart.data.text.read import Labelled, by_class, read_texts
from headstart.data.text.text import text_tasks
from headstart.errors import DataError
from headstart.schema import extends
from headstart.types import Tasks

Fold: TypeAlias = Annotated[int, Ge(1), Le(5)]

#: The split of each class, in the order of their names: train, validation, test. One line a fold.
FOLDS = (
    "evtettetevtteveetettvtvtvteeettvevvvteettvvveveveetevvvvvevteteetvttevveevtte",
    "teetevtevteevtvvtetteeveetvevetteetvvtvevtvtvteevvetvvveeettvtvvtteeteevtvevt",
    "eevtvtvteevttvevevtvtvtveetvveetvevtvvvtetettvtevvtttvtettteeeveeeteeeveetvev",
    "veettveeevvevetveevetvvvvtttevetvttvteetvevvtvevteeeeetttettveevtttettevtvevv",
    "etteetetvveeveeetevtetttetetvtveetvvettvvvvvteeeeetvvtvvttveetteevvetvtevtvvv",
)


@extends(text_tasks, without=("details",))
def banking77(data: Path, *, fold: Fold = 1, lower: bool = True, **options: Any) -> Tasks:
    """Tell intents of a bank's customers apart (Casanueva et al. 2020, arXiv:2003.04807).

    The 13,083 questions of both files together; 25 intents are for training, 25 for validation and 27 for test, in the
    five splits of Dopierre, Gravier, Logerais 2021 (arXiv:2105.12995), which few-shot papers on intents report.

    Args:
        data: the folder that holds ``train.csv`` and ``test.csv``, as they are published.
        fold: which of the five splits.
        lower: whether capital letters become small ones.
        options: those of `headstart.data.text.text.text_tasks`.

    Raises:
        FileError: a file that is missing.
        DataError: files that do not hold these 77 intents.
    """
    parts = [read_texts(Path(data) / name, "text", "category") for name in ("train.csv", "test.csv")]
    count = len(parts[0].texts)
    whole = parts[0]._replace(
        path=str(data),
        texts=[text for part in parts for text in part.texts],
        labels=[label for part in parts for label in part.labels],
        where=lambda row: parts[row >= count].where(row - count * (row >= count)),
    )
    source = "Casanueva et al. 2020, arXiv:2003.04807"
    details = {"fold": fold, "source": source, "licence": "CC BY 4.0"}
    return text_tasks(
        "banking77", whole, of_fold(whole, FOLDS[fold - 1], lower), lower=lower, details=details, **options
    )


def of_fold(found: Labelled, letters: str, lower: bool) -> dict[str, dict[str, list[int]]]:
    """Return the rows of each split's classes, where a letter for each class, by name, says the split.

    Raises:
        DataError: another number of classes than letters.
    """
    classes = by_class(found, lower=lower)
    if len(classes) != len(letters):
        raise DataError(f"{found.path} has {len(classes)} classes; expected the {len(letters)} that were published")
    split: dict[str, str] = dict(zip("tve", SPLITS))
    placed = {name: split[letter] for name, letter in zip(sorted(classes), letters)}
    return {own: {name: rows for name, rows in sorted(classes.items()) if placed[name] == own} for own in SPLITS}
