"""The door to ONNX files, which are frozen: ids and masks, or images, to features."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.errors import FileError
from headstart.models.trunks import folder as beside
from headstart.models.trunks.trunk import Pictured, Trunk, digest, needs, resizer, told_by


def onnx(where: str) -> Trunk:
    """Open an ONNX file; what lies beside it, or one folder above, says how data become its inputs, as with ``hf``.

    A network for texts takes ``input_ids``, and ``attention_mask`` and ``token_type_ids`` where it has such inputs; its
    first output is tokens ``(n, length, width)``, pooled as the files say, or features ``(n, width)``. One for images
    takes one input ``(n, 3, size, size)``.

    Args:
        where: the file.

    Raises:
        FileError: no such file, or no tokenizer or preprocessor beside it.
        ConfigError: onnxruntime is not installed.
    """
    path = Path(where).expanduser()
    if not path.is_file():
        raise FileError(f"onnx:{where}: there is no such file")
    known, places = ("tokenizer.json", "preprocessor_config.json"), (path.parent, path.parent.parent)
    folder = next((place for place in places if any((place / name).is_file() for name in known)), None)
    if folder is None:
        raise FileError(f"beside {path} is neither a {' nor a '.join(known)}, which say how data become its inputs")
    sha256 = digest([path, *path.parent.glob(f"{path.name}?data"), *beside.there(folder)])
    if (folder / known[1]).is_file():
        seen = beside.pictures(folder)
        shown = resizer(seen["size"], seen["resample"])
        return Trunk(f"onnx:{where}", sha256, "images", shown, lambda: Pictured(Session(path, None), seen), seen)
    about = beside.texts(folder, beside.read_json(folder, "config.json")) | beside.pooling(folder)
    inputs, cut = beside.tokenizer(folder, about)
    return Trunk(f"onnx:{where}", sha256, "texts", inputs, lambda: Session(path, about), about, cut)


class Session(nn.Module):
    """An ONNX network; no gradient goes through it."""

    def __init__(self, path: Path, about: dict[str, Any] | None) -> None:
        super().__init__()
        runtime = needs("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # whatever another package does
            raise FileError(f"onnxruntime cannot read {path}: {told_by(error)}") from error
        self.names, self.about = [one.name for one in self.session.get_inputs()], about
        known = {"input_ids", "attention_mask", "token_type_ids"} if about else set(self.names[:1])
        if extra := set(self.names) - known:
            raise FileError(
                f"{path} asks for the inputs {', '.join(sorted(extra))}; known are {', '.join(sorted(known))}"
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.about is None:
            return torch.from_numpy(self.session.run(None, {self.names[0]: x.cpu().numpy()})[0])
        there = (x != self.about["pad"]).long()
        given = {"input_ids": x, "attention_mask": there, "token_type_ids": torch.zeros_like(x)}
        found = self.session.run(None, {name: given[name].cpu().numpy() for name in self.names})[0]
        tokens = torch.from_numpy(found).float()
        if tokens.dim() == 3:
            tokens = beside.pooled(tokens, there.bool().cpu(), self.about["pooling"])
        return F.normalize(tokens, dim=-1) if self.about["normalised"] else tokens
