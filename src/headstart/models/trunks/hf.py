"""The door to networks in Hugging Face's format: a folder, or a name whose files are in the local cache.

All is read from the folder's own files: ``config.json`` and ``*.safetensors``; for texts ``tokenizer.json``, and where
it is sentence-transformers' ``modules.json``, ``1_Pooling/config.json`` and ``sentence_bert_config.json``; for images
``preprocessor_config.json``. Nothing is ever downloaded, and no program that lies in the folder is run.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from headstart.errors import ConfigError, FileError
from headstart.models.trunks import folder as beside
from headstart.models.trunks.trunk import Pictured, Trunk, digest, needs, of_torchvision, resizer, told_by

#: What configurations call their numbers of layers.
_DEPTH = re.compile("layers?$|depths?$|blocks?$")


def hf(where: str) -> Trunk:
    """Open a network that is saved as transformers or sentence-transformers save it.

    Args:
        where: its folder, or its name, whose files are looked for in the local cache alone.

    Raises:
        FileError: no such folder, or a file in it that is missing or cannot be used.
        ConfigError: transformers is not installed.
    """
    folder = Path(where).expanduser()
    if not folder.is_dir() and folder.is_absolute():
        raise FileError(f"there is no folder {folder}; bring the network back there, or give the folder that it is in")
    folder = folder if folder.is_dir() else _in_cache(where)
    config = beside.read_json(folder, "config.json")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        others = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pth", ".pt", ".h5")]
        how = (
            f"it has {', '.join(others)}, which can hold programs: headstart.models.trunks.convert.to_safetensors makes"
            " safetensors of it"
            if others
            else "they are missing"
        )
        raise FileError(f"{folder} has no weights as *.safetensors: {how}")
    source, sha256 = f"hf:{where}", digest([*weights, *beside.there(folder)])
    if (folder / "preprocessor_config.json").is_file():
        seen = beside.pictures(folder)
        shown = resizer(seen["size"], seen["resample"])
        return Trunk(source, sha256, "images", shown, lambda: Pictured(_Seen(_model(folder)), seen), seen)
    about = beside.texts(folder, config) | beside.pooling(folder)
    inputs, cut = beside.tokenizer(folder, about)
    return Trunk(source, sha256, "texts", inputs, lambda: _reader(folder, about), about, cut)


def _in_cache(name: str) -> Path:
    hub = needs("huggingface_hub", "text")
    try:
        return Path(hub.snapshot_download(name, local_files_only=True))
    except Exception as error:  # of several packages
        raise FileError(
            f"hf:{name} is no folder here, and no such network is in the local cache; nothing is downloaded. Get its"
            f" files where there is a network, by `hf download {name} --local-dir FOLDER`, and give hf:FOLDER"
        ) from error


def _refuse_deep(folder: Path, weights: Sequence[Path], told: Any) -> None:
    """Refuse a configuration of more layers than there are tensors: they are made before weights are read."""
    try:
        count = sum(len(cast(Any, file).keys()) for path in weights for file in [safe_open(path, "pt")])
    except (OSError, SafetensorError) as error:
        raise FileError(f"cannot read the weights in {folder}: {error}") from error
    if not isinstance(told, dict):
        raise FileError(f"{folder}/config.json holds a {type(told).__name__}; expected an object")
    parts = [told]
    for part in parts:
        parts += [value for value in part.values() if isinstance(value, dict)]
        for name, value in part.items():
            numbers = [n for n in (value if isinstance(value, list) else [value]) if type(n) in (int, float)]
            if _DEPTH.search(name) and sum(numbers) > count:
                raise FileError(f"{folder}/config.json has {name} {value}; its weights are {count} tensors")


def _model(folder: Path, **options: Any) -> nn.Module:
    """Read the weights; what of the network has none in the files is refused, unless it is not used."""
    transformers = needs("transformers", "text")
    _refuse_deep(folder, sorted(folder.glob("*.safetensors")), beside.read_json(folder, "config.json"))
    logging = transformers.utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, told = transformers.AutoModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32,
                output_loading_info=True, **options,
            )  # fmt: skip
    except Exception as error:  # whatever another package does
        raise FileError(f"transformers cannot read {folder}: {told_by(error)}{of_torchvision()}") from error
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
    missing = sorted(name for name in told["missing_keys"] if not name.startswith("pooler."))
    if missing or told.get("mismatched_keys"):
        raise FileError(f"{folder} has no weights for {(missing or ['some'])[0]}, which would be random numbers")
    if any(name.startswith("pooler.") for name in told["missing_keys"]):
        model.pooler = None
    return model.eval()


def _reader(folder: Path, about: Mapping[str, Any]) -> nn.Module:
    model = _model(folder, attn_implementation="sdpa")
    whole = Read(model, about["pad"], about["pooling"], about["normalised"], wide=True).eval()
    # a mask in full form can be mapped over tasks, which transformers' own way of making it cannot
    if not _same(whole, about):
        whole.wide = False
    return whole


@torch.no_grad()
def _same(read: "Read", about: Mapping[str, Any]) -> bool:
    """Return whether masks in full form give what transformers makes of plain ones, also of the longest texts."""
    length, size = about["length"], read.model.get_input_embeddings().num_embeddings
    ids = torch.randint(0, size, (2, length), generator=torch.Generator().manual_seed(0))
    ids[ids == about["pad"]] += 1 if about["pad"] < size - 1 else -1
    ids[1, length // 2 :] = about["pad"]
    plain = Read(read.model, read.pad, read.pooling, read.normalised, wide=False).eval()
    try:
        return bool(torch.allclose(read(ids), plain(ids), rtol=1e-4, atol=1e-5))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False


class Read(nn.Module):
    """A transformer's tokens as one vector: ids ``(n, length)`` -> ``(n, width)``; padding counts for nothing."""

    def __init__(self, model: Any, pad: int, pooling: str, normalised: bool, wide: bool) -> None:
        super().__init__()
        self.model = model
        self.pad, self.pooling, self.normalised, self.wide = pad, pooling, normalised, wide

    def forward(self, ids: Tensor) -> Tensor:
        there = ids != self.pad
        dtype = next(self.model.parameters()).dtype
        mask = (~there)[:, None, None, :].to(dtype) * -1e9 if self.wide else there.long()
        tokens = self.model(input_ids=ids.long(), attention_mask=mask).last_hidden_state
        found = beside.pooled(tokens, there, self.pooling)
        return F.normalize(found, dim=-1) if self.normalised else found


class _Seen(nn.Module):
    """An image network's one vector: its own pooled one where its weights are there, else the first token's."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        if model.config.model_type in ("clip", "siglip"):
            raise ConfigError(
                f"{model.config.model_type} is more than a network for images; save its vision part alone"
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(pixel_values=x)
        pooled = getattr(out, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        tokens = out.last_hidden_state
        return tokens.mean((-2, -1)) if tokens.dim() == 4 else tokens[:, 0]
