"""A pretrained network of which a part is learned: low-rank adapters, its last blocks, or all but its embeddings."""

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from headstart.algorithms.adapters import LowRank, low_rank
from headstart.core.parameters import Leaf
from headstart.errors import FileError, UsageError
from headstart.forward.python_state import copied
from headstart.models.projection import Residual
from headstart.models.trunks.cut import blocks_of, cut
from headstart.models.trunks.trunk import module_of, open_trunk, some
from headstart.schema import Count
from headstart.types import Params

#: What peft can do with its adapters besides, and is not read here.
_MORE = (
    *("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_pattern", "fan_in_fan_out", "lora_bias"),
    *("exclude_modules", "target_parameters", "trainable_token_indices", "layer_replication", "use_qalora"),
)
#: Ways of peft to start adapters that leave the network's own weights as they are.
_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
#: What layers of transformers call the share that they drop, where it is not in a layer of its own.
_DROPS = ("dropout", "dropout_p", "dropout_prob", "attention_dropout", "hidden_dropout", "activation_dropout")

#: Inputs that a mean of features is taken of, at most, and so many at a time.
_MOST, _TOGETHER = 2048, 64


def trunk(
    inputs: int | Sequence[int],
    outputs: int | None = None,
    *,
    source: str | None = None,
    sha256: str | None = None,
    tuned: Literal["low_rank", "last", "all"] | Path = "low_rank",
    rank: Count = 8,
    blocks: Count | None = None,
) -> nn.Module:
    """Return a pretrained network with a part of its weights to learn; the others are constants, and in no checkpoint.

    Behind it comes a `headstart.models.projection.Residual`: z + W z with z = f(x) − c, which starts at W = 0 and the
    mean c of the features of training inputs. Low-rank adapters start at no change at all. Nothing is remembered for
    derivatives below the first block with something to learn, which inner steps need only compute once (`cut`), and
    nothing is dropped at random.

    Args:
        inputs: the shape of what the network takes; not used, but accepted so that all models are made alike.
        outputs: number of outputs of a linear head; ``None`` leaves it out, for an embedding.
        source: where the network is, such as ``hf:FOLDER``.
        sha256: what the digest of the network must be, where that is known.
        tuned: what is learned: low-rank adapters beside the linear layers of the last blocks (low_rank), the last
            blocks themselves (last), everything (all), both but for embeddings and batch normalisation, or the low-rank
            adapters that an ``adapter_config.json`` of peft's says, from the weights beside it, where there are any.
        rank: rank of the adapters.
        blocks: the last so many blocks; by default one for the blocks themselves, and all for adapters.

    Raises:
        UsageError: a network without such blocks, or one through which no gradient goes.
        FileError: a network, or a file of peft's, that cannot be read.

    Reference: Hu et al. 2021, arXiv:2106.09685, for the adapters.
    """
    if source is None:
        raise UsageError("the model 'trunk' is a pretrained network; say which, with --model hf:FOLDER or source=")
    with torch.device("cpu"):  # where only shapes are asked for, constants are what they are
        opened = open_trunk(source, sha256=sha256)
        body = steady(_tuned(module_of(opened), source, tuned, rank, blocks).eval())
        body = cut(body, opened.inputs(some(opened)))
        with torch.no_grad():
            found = body(opened.inputs(some(opened)))
        layers = OrderedDict[str, nn.Module](body=body, residual=Residual(found.shape[-1]))
        layers |= {} if outputs is None else {"head": nn.Linear(found.shape[-1], outputs)}
        return Tuned(layers).to(found.dtype)


class Tuned(nn.Sequential):
    """What `trunk` returns."""

    @torch.no_grad()
    def start_by_inputs(self, inputs: Sequence[Tensor]) -> Params:
        """Return the centre: the mean of the features of inputs ``(n, …)``."""
        body, step = self.get_submodule("body"), -(-sum(map(len, inputs)) // _MOST)  # as many as tell a mean
        device = next(body.parameters()).device
        found = [body(part.to(device)) for x in inputs for part in x[::step].split(_TOGETHER)]
        return {"residual.centre": torch.cat(found).mean(0)}


def _tuned(body: nn.Module, source: str, tuned: str | Path, rank: int, blocks: int | None) -> nn.Module:
    """Return a copy of a frozen network with what is to be learned."""
    if not any(True for _ in body.parameters()):
        raise UsageError(f"{source} has no weights that a gradient reaches, so it is frozen; leave out --tuned")
    if tuned == "low_rank":
        return low_rank(body, rank=rank, what=_linear_in(() if blocks is None else last_blocks(body, blocks, source)))
    if tuned not in ("last", "all"):
        return of_peft(body, Path(tuned))
    within = ("",) if tuned == "all" else last_blocks(body, blocks or 1, source)
    body = copied(body)
    for path, layer in body.named_modules():
        if _within(path, within) and not isinstance(layer, (nn.Embedding, _BatchNorm)):
            for parameter in layer.parameters(recurse=False):
                parameter.requires_grad_(parameter.is_floating_point())
    return body


def last_blocks(module: nn.Module, count: int, source: str = "the network") -> tuple[str, ...]:
    """Return the paths of the last ``count`` blocks of a network (`blocks_of`)."""
    found = blocks_of(module)
    if len(found) < count:
        raise UsageError(f"{source} has {len(found)} blocks of one type in a row, but {count} are to be learned")
    return found[-count:]


def _within(path: str, parts: Sequence[str]) -> bool:
    return any(not part or path == part or path.startswith(f"{part}.") for part in parts)


def _linear_in(within: Sequence[str]) -> Callable[[Leaf], bool]:
    return lambda leaf: issubclass(leaf.module, nn.Linear) and (not within or _within(leaf.name, within))


def steady(module: nn.Module) -> nn.Module:
    """Let a module drop nothing, in whatever mode it runs; it is changed, and returned."""
    for layer in module.modules():
        if isinstance(layer, _DropoutNd):
            layer.p = 0.0
        for name in _DROPS:
            if isinstance(vars(layer).get(name), float):
                setattr(layer, name, 0.0)
    return module


def of_peft(module: nn.Module, path: Path) -> nn.Module:
    """Return a network with the low-rank adapters that peft's ``adapter_config.json`` says.

    They start from ``adapter_model.safetensors`` beside it, where there is one. Their dropout is left out.

    Raises:
        FileError: a file that cannot be read, adapters of another kind, or layers that are not there.
    """
    path = path / "adapter_config.json" if path.is_dir() else path
    if not path.is_file() or path.stat().st_size > 1 << 20:  # a pipe would be waited for
        raise FileError(
            f"{path} is no configuration of low-rank adapters of peft: there is no such file, or a large one"
        )
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        kind, rank, alpha, target = told["peft_type"], int(told["r"]), float(told["lora_alpha"]), told["target_modules"]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise FileError(f"{path} is no configuration of low-rank adapters of peft: {error!r}") from error
    more = [name for name in _MORE if told.get(name)] + ["bias"] * (told.get("bias", "none") != "none")
    more += ["init_lora_weights"] * (told.get("init_lora_weights") not in _STARTS)
    if kind != "LORA" or more:
        raise FileError(f"{path} is of {kind}{' with ' if more else ''}{', '.join(more)}; read is plain LORA alone")
    numbers = told.get("layers_to_transform")
    numbers = [numbers] if isinstance(numbers, int) else numbers

    def of(one: str, name: str) -> bool:
        """Return whether a layer is one that an entry of the targets names, or, where they are one text, matches."""
        if isinstance(target, str):
            named = target == "all-linear" or re.fullmatch(target, name) is not None
        else:
            named = name == one or name.endswith(f".{one}")
        return named and (not numbers or any(f".{number}." in name for number in numbers))

    strength = alpha * rank**0.5 if told.get("use_rslora") else alpha  # rsLoRA divides by the root of the rank
    inner = getattr(module, "model", module)
    prefix = "model." if inner is not module else ""
    linear = [name.removeprefix(prefix) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    try:
        each = [target] if isinstance(target, str) else target
        asked = {str(one): {name for name in linear if of(one, name)} for one in each}
    except (TypeError, re.error) as error:
        raise FileError(f"{path} has target_modules {target!r}, which name no layers: {error}") from error
    if lacking := [one for one, names in asked.items() if not names]:
        has = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        among = f" in the layers {numbers}" if numbers else ""
        raise FileError(
            f"{path} asks for adapters beside {lacking[0]!r}, but no linear layer{among} is called so; there are {has}"
        )
    chosen = {prefix + name for names in asked.values() for name in names}
    found = low_rank(module, rank=rank, alpha=strength, what=lambda leaf: leaf.name in chosen)
    weights = path.with_name("adapter_model.safetensors")
    if not weights.exists() and (other := path.with_name("adapter_model.bin")).exists():
        raise FileError(
            f"{other} can hold programs, so it is not read: headstart.models.trunks.convert.to_safetensors makes"
            f" {weights.name} of it"
        )
    if weights.exists() and not weights.is_file():  # a pipe would be waited for
        raise FileError(f"cannot read {weights}: it is not a file")
    if weights.exists():
        _load_peft(found, prefix, weights)
    return found


def _load_peft(module: nn.Module, prefix: str, path: Path) -> None:
    try:
        given: Mapping[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise FileError(f"cannot read {path}: {error}") from error
    own: dict[str, Any] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, LowRank):
            bare = f"base_model.model.{name.removeprefix(prefix)}"
            own |= {f"{bare}.lora_A.weight": layer.down, f"{bare}.lora_B.weight": layer.up}
    wrong = [name for name, value in own.items() if name not in given or given[name].shape != value.shape]
    if wrong or given.keys() - own.keys():
        raise FileError(
            f"{path} does not fit its configuration: {next(iter([*wrong, *sorted(given.keys() - own.keys())]))}"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(given[name])
