from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headstart.data.text.read import encoded
from headstart.errors import ShapeError, UsageError
from headstart.models.ngrams import Hashed, ngrams
from headstart.testing import check_learner, random_episodes
from headstart.testing.learners import made
from headstart.training.build import build
from headstart.training.config import resolve
from headstart.training.loop import start


def ids(*texts, length=24):
    return encoded(texts, length)[0].long()


def test_counts_are_those_of_the_ngrams():
    """The runs of letters within words and their spaces, and words, counted one by one."""
    told = "aba aba c"
    grams = [f" {word} "[at : at + n] for word in told.split() for n in (2, 3) for at in range(len(word) + 3 - n)]
    grams += [("w", word) for word in told.split()] + [("w", *pair) for pair in zip(told.split(), told.split()[1:])]
    wanted = sorted(grams.count(gram) for gram in set(grams))
    counts = Hashed(16, 2, 3, 2)(ids(told)).expm1().round()
    assert sorted(counts[counts > 0].int().tolist()) == wanted


def test_padding_and_what_stands_beside_do_not_count():
    model = ngrams(24, None, bits=12)
    alone, padded = model(ids("my card is lost", length=15)), model(ids("my card is lost", "x" * 24))
    assert torch.equal(alone[0], padded[0])
    assert torch.allclose(padded.norm(dim=-1), torch.ones(2))
    assert not model(ids("")).any()


def test_order_of_words_counts_for_pairs_alone():
    one, other = ids("a card"), ids("card a")
    assert torch.equal(Hashed(14, 2, 5, 1)(one), Hashed(14, 2, 5, 1)(other))
    assert not torch.equal(Hashed(14, 2, 5, 2)(one), Hashed(14, 2, 5, 2)(other))


def test_in_a_run_it_starts_as_tfidf_of_the_training_texts(tmp_path):
    """As scikit-learn computes it, but that two n-grams may share a hash."""
    sklearn = pytest.importorskip("sklearn.feature_extraction.text")
    words = "card money rate pin loan fee cash bank visa app code name".split()
    lines = [f"{one} and {other},{one}" for one in words for other in words if one != other]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines))
    config = resolve({"tasks": {"name": str(tmp_path / "a.csv"), "ways": 2}, "model": {"bits": 15}})
    job = build(config)
    meta = start(job.learner, tasks=job.tasks).meta
    own = job.tasks.details["class_names"]["train"]
    seen = [told for told, _, name in (line.partition(",") for line in lines) if name in own]
    options = {"analyzer": "char_wb", "ngram_range": (2, 5), "sublinear_tf": False, "norm": None}
    tfidf = sklearn.TfidfVectorizer(**options).fit(seen)
    counted = sklearn.CountVectorizer(analyzer="char_wb", ngram_range=(2, 5), vocabulary=tfidf.vocabulary_)
    wanted = F.normalize(torch.from_numpy(np.log1p(counted.transform(seen).toarray()) * tfidf.idf_).float())
    model = ngrams(128, None, bits=15)
    assert (model(ids(*seen, length=128)) @ model(ids(*seen, length=128)).T - wanted @ wanted.T).abs().max() > 0.05
    model.load_state_dict({"weights.log_weight": meta.params["weights.log_weight"]})
    ours = model(ids(*seen, length=128))
    torch.testing.assert_close(ours @ ours.T, wanted @ wanted.T, atol=0.045, rtol=0)


@pytest.mark.parametrize(("method", "ways"), [("prototypes", None), ("maml", 3)])
def test_it_keeps_the_contract(method, ways):
    module = ngrams(9, ways, bits=5, words=2, letters=(1, 3)).double()
    episodes = random_episodes((9,), tokens=100)
    check_learner(partial(made, method, module, episodes), episodes, module=module, directions=2)


def test_shapes_and_refusals():
    assert ngrams((24,), 3, bits=8, width=5)(ids("a", "b")).shape == (2, 3)
    assert ngrams(24, None, bits=8)(ids("a", "b").view(1, 2, 24)).shape == (1, 2, 256)
    with pytest.raises(ShapeError, match="texts as bytes"):
        ngrams((1, 28, 28), 3)
    with pytest.raises(UsageError, match="letters from 1 to 16"):
        ngrams(24, 3, letters=(5, 2))
