"""SetFit, which fine-tunes a sentence transformer on pairs of texts and fits logistic regression on what it gives.

Reference: Tunstall et al. 2022, arXiv:2209.11055.
"""

import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.peers.prepared import Arrays, Prepared


def setfit(values: Mapping[str, Any]) -> Prepared:
    """Return SetFit on one classification of texts, with its own settings but for the number of pairs.

    Args:
        values: ``network``, a folder of sentence-transformers; ``texts`` and their ``labels``, to learn from;
            ``queries``, to classify; ``pairs``, how many times two pairs are drawn for each text (20 in the paper; by
            the library's default all pairs of two texts are, and those of one class as often again); ``seed``.
    """
    # that of the other peers is of another build than torch, which transformers would fail on
    sys.modules.setdefault("torchvision", None)  # pyrefly: ignore
    from datasets import Dataset  # pyrefly: ignore
    from setfit import SetFitModel, Trainer, TrainingArguments  # pyrefly: ignore

    examples = Dataset.from_dict({"text": values["texts"], "label": values["labels"]})
    seconds, found = np.zeros(2), np.zeros(len(values["queries"]), dtype=np.int64)

    def step() -> None:
        began = time.process_time()
        torch.manual_seed(values["seed"])
        model = SetFitModel.from_pretrained(values["network"])
        with tempfile.TemporaryDirectory() as place:
            told = {"report_to": "none", "save_strategy": "no", "show_progress_bar": False}
            settings = TrainingArguments(
                place, num_epochs=1, num_iterations=values["pairs"], seed=values["seed"], **told
            )
            Trainer(model=model, args=settings, train_dataset=examples).train()
        seconds[0] = time.process_time() - began
        found[:] = np.asarray(model.predict(values["queries"], show_progress_bar=False))
        seconds[1] = time.process_time() - began - seconds[0]

    def answer() -> Arrays:
        step()
        return {"predictions": found, "seconds": seconds}

    return Prepared(step, answer)
