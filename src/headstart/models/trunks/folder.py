"""What the files beside a network say: how texts become ids and ids one vector, and how images become its inputs."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart.errors import FileError
from headstart.models.trunks.trunk import Resample, needs

#: By the names that sentence-transformers has for them.
_POOLINGS = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "mean_sqrt_len_tokens": "mean_sqrt"}
_POOLINGS |= {"cls": "cls", "mean": "mean", "max": "max"}
#: By Pillow's numbers.
_RESAMPLES: dict[int, Resample] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
#: Whose positions count from the id of padding on.
_OFFSET = ("roberta", "xlm-roberta", "camembert", "mpnet")

#: Letters of a text that are read first for each token that it may have: more than tokens have, but for spaces.
_LETTERS = 64

#: More than any of these files has, but for a tokenizer's, which is not read here.
_JSON_BYTES = 16 << 20
#: What of a folder features depend on, besides its weights.
FILES = (
    *("config.json", "modules.json", "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json"),
    "preprocessor_config.json",
)


def read_json(folder: Path, name: str, default: Any = None) -> Any:
    """Return what a JSON file in a folder holds; ``default``, where there is one, if it is not there."""
    path = folder / name
    if not path.is_file():  # a pipe would be waited for
        if default is not None and not path.exists():
            return default
        raise FileError(f"{folder} has no {name}, so it is no network of transformers")
    try:
        if (size := path.stat().st_size) > _JSON_BYTES:
            raise FileError(f"{path} has {size} bytes; expected at most {_JSON_BYTES}")
        return json.loads(path.read_bytes())
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not JSON: {error}") from error


def there(folder: Path) -> list[Path]:
    """Return the files of a folder that features depend on, besides its weights."""
    parts = [folder / str(module.get("path", "")) / "config.json" for module in read_json(folder, "modules.json", [])]
    return [path for path in {*(folder / name for name in FILES), *parts} if path.is_file()]


def pooling(folder: Path) -> dict[str, Any]:
    """Return how tokens become one vector, and whether that is scaled to length 1."""
    how, normalised = list[str](), False
    for module in read_json(folder, "modules.json", []):
        kind = str(module["type"]).rpartition(".")[2]
        if kind == "Pooling":
            told = read_json(folder, f"{module['path']}/config.json")
            how = [key.removeprefix("pooling_mode_") for key, on in told.items() if "pooling_mode_" in key and on]
            how = [str(told["pooling_mode"])] if "pooling_mode" in told else how
            if len(how) != 1 or how[0] not in _POOLINGS:
                known = ", ".join(dict.fromkeys(_POOLINGS.values()))
                raise FileError(f"{folder} pools by {' and '.join(how) or 'nothing'}; read is one of {known}")
        elif kind == "Normalize":
            normalised = True
        elif kind != "Transformer":
            raise FileError(
                f"{folder} has a part {module['type']}, which is not read here; with FILE.py:factory it can be used"
            )
    told = {} if how else {"note": "no file says how its tokens become one vector: their mean is taken"}
    return {"pooling": _POOLINGS[how[0]] if how else "mean", "normalised": normalised, **told}


def texts(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the most tokens of a text, the id of padding, and whether capital letters become small ones."""
    if not (folder / "tokenizer.json").is_file():
        raise FileError(
            f"{folder} has no tokenizer.json, without which no text can be read; bring it there"
            " (transformers.AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER) writes it)"
        )
    own, told = read_json(folder, "sentence_bert_config.json", {}), read_json(folder, "tokenizer_config.json", {})
    pad, positions = config.get("pad_token_id"), config.get("max_position_embeddings")
    if pad is None:
        raise FileError(f"{folder}/config.json has no pad_token_id, so texts of different lengths cannot be told apart")
    if positions and config.get("model_type") in _OFFSET:
        positions -= pad + 1
    said = own.get("max_seq_length") or told.get("model_max_length")
    longest = min([int(limit) for limit in (said, positions) if limit and limit < 10**6], default=0)
    if longest < 1:
        raise FileError(f"{folder}: no file says how many tokens a text may have (max_seq_length, model_max_length)")
    return {"length": longest, "pad": int(pad), "lower": bool(own.get("do_lower_case", False))}


def tokenizer(
    folder: Path, about: Mapping[str, Any]
) -> tuple[Callable[[Sequence[str]], Tensor], Callable[[Sequence[str]], int]]:
    """Return what makes texts ids ``(n, length)``, padded to the longest of them, and what counts those it cuts."""

    @cache
    def opened() -> Any:
        tokenizers = needs("tokenizers", "text")
        try:
            found = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the package raises Exception itself
            raise FileError(f"cannot read {folder / 'tokenizer.json'}: {error}") from error
        found.no_padding()
        found.enable_truncation(about["length"])
        return found

    def tokens(texts: Sequence[str]) -> list[Any]:
        texts = [text.lower() for text in texts] if about["lower"] else texts
        # of an enormous text all would be read to give a few tokens; its start will do where that has too many already
        starts = [text[: _LETTERS * about["length"]] for text in texts]
        found = opened().encode_batch(starts)
        few = [row for row, one in enumerate(found) if len(starts[row]) < len(texts[row]) and len(one.overflowing) < 2]
        for row, one in zip(few, opened().encode_batch([texts[row] for row in few])):
            found[row] = one
        return found

    def inputs(texts: Sequence[str]) -> Tensor:
        found = tokens(texts)
        ids = torch.full((len(found), max((len(one.ids) for one in found), default=1)), about["pad"])
        for row, one in zip(ids, found):
            row[: len(one.ids)] = torch.tensor(one.ids)
        return ids

    def cut(texts: Sequence[str]) -> int:
        most = about["length"] - opened().num_special_tokens_to_add(False)
        long = [text for text in texts if len(text.encode()) > most]  # a token is a byte at least
        return sum(bool(one.overflowing) for one in tokens(long))

    return inputs, cut


def pooled(tokens: Tensor, there: Tensor, how: str) -> Tensor:
    """Return tokens ``(n, length, width)`` as one vector each, ``(n, width)``; what is not ``there`` counts nothing."""
    if how == "cls":
        return tokens[:, 0]
    there = there.unsqueeze(-1)
    if how == "max":
        return torch.where(there, tokens, -1e9).amax(1)
    count = there.sum(1).clamp(min=1).to(tokens)
    return torch.where(there, tokens, 0).sum(1) / (count if how == "mean" else count.sqrt())


def pictures(folder: Path) -> dict[str, Any]:
    """Return how images are to be made the network's inputs: size, mean, std and resample, of values in [0, 1]."""
    path, told = folder / "preprocessor_config.json", read_json(folder, "preprocessor_config.json")
    sizes = [size if isinstance(size, dict) else {"height": size} for size in (told.get("crop_size"), told.get("size"))]
    edges = [(size.get("height") or size.get("shortest_edge"), size.get("width")) for size in sizes]
    size = next((one for one, other in edges if isinstance(one, int) and other in (None, one)), None)
    if size is None:
        raise FileError(f"{path} does not say of what size images are to be, as high as they are wide")
    scale = 255 * (told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 1)
    mean, std = [0.0] * 3, [1.0] * 3
    try:
        if told.get("do_normalize", True):
            mean, std = told["image_mean"], told["image_std"]
        resample = _RESAMPLES[told.get("resample", 2)]
    except KeyError as error:
        raise FileError(f"{path} has no {error}, or none that is read here") from error
    shown = {"mean": [value / scale for value in mean], "std": [value / scale for value in std]}
    return {"size": size, "resample": resample, **shown}
