"""A pretrained network of which a part is learned: exact, steady, and nothing else in θ."""

import json

import pytest
import torch
from torch import nn

from headstart import maml, meta_gradient, prototypes, ridge, rules
from headstart.algorithms.adapters import LowRank
from headstart.algorithms.tuned import last_blocks, steady, trunk
from headstart.errors import FileError, UsageError
from headstart.forward.functional import functional
from headstart.testing import check_learner
from headstart.types import Batch, Episodes

OWN = """
import torch, headstart
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, there):
        near = (self.q(x) @ self.k(x).mT).masked_fill(~there[..., None, :], -1e9).softmax(-1)
        return x + self.drop(near @ self.v(x)).tanh()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, ids):
        there = ids != 0
        x = self.words(ids.long())
        for block in self.blocks:
            x = block(x, there)
        return (x * there[..., None]).sum(-2) / there.sum(-1, keepdim=True).clamp(min=1)

def make():
    torch.manual_seed(0)
    return headstart.of_texts(Net().double(), lambda texts: torch.tensor([[len(text) % 9] for text in texts]), pad=0)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    return f"{path}:make"


def padded(tasks: int = 3, length: int = 5) -> Episodes:
    """Return two-way episodes of texts of different lengths, as ids padded by 0."""
    generator = torch.Generator().manual_seed(0)

    def batch(shots: int) -> Batch:
        ids = torch.randint(1, 9, (tasks, 2 * shots, length), generator=generator)
        sizes = torch.randint(1, length + 1, (tasks, 2 * shots, 1), generator=generator)
        return Batch(ids * (torch.arange(length) < sizes), torch.arange(2).repeat_interleave(shots).expand(tasks, -1))

    return Episodes(batch(2), batch(3))


@pytest.mark.parametrize("method", ["prototypes", "ridge", "maml"])
@pytest.mark.parametrize("tuned", ["low_rank", "last"])
def test_learners_of_padded_texts_keep_the_contract(source, tuned, method):
    net = trunk(5, 2 if method == "maml" else None, source=source, tuned=tuned, rank=2, blocks=1).double()
    for name, value in net.named_parameters():
        if name.endswith("up"):  # else the gradient of what stands before it is nothing
            nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(1))

    def made(taskmap):
        if method == "maml":
            return maml(net, steps=2, rate=0.1, taskmap=taskmap)
        return {"prototypes": prototypes, "ridge": ridge}[method](net, ways=2, taskmap=taskmap)

    check_learner(made, padded(), module=net)


def test_only_what_is_learned_is_in_theta(source):
    learned = {
        how: {
            name
            for name, value in trunk(5, source=source, tuned=how, blocks=1).named_parameters()
            if value.requires_grad
        }
        for how in ("low_rank", "last", "all")
    }
    own, above = {"residual.centre", "residual.linear.weight"}, "body.above.network.blocks.1"
    assert learned["low_rank"] == {f"{above}.{name}.{part}" for name in "qkv" for part in ("down", "up")} | own
    assert learned["last"] == {f"{above}.{name}.{part}" for name in "qkv" for part in ("weight", "bias")} | own
    assert (
        learned["all"]
        == {f"body.blocks.{n}.{name}.{part}" for n in "01" for name in "qkv" for part in ("weight", "bias")} | own
    )
    theta = prototypes(trunk(5, source=source, blocks=1)).init(None).params
    assert set(theta) == learned["low_rank"]


def test_adapters_start_at_the_network_itself_and_drop_nothing(source):
    x = padded().support.x[0]
    frozen = trunk(5, source=source, tuned="last")
    for how in ("low_rank", "all"):
        net = trunk(5, source=source, tuned=how).train()
        torch.testing.assert_close(net(x), frozen(x), rtol=0, atol=0)


def test_features_start_centred_at_the_mean_of_the_inputs(source):
    net, x = trunk(5, source=source, tuned="last"), padded().support.x.flatten(0, 1)
    found = net.body(x)
    started = net.start_by_inputs([x[:5], x[5:]])
    torch.testing.assert_close(started["residual.centre"], found.mean(0).detach())
    net.load_state_dict(net.state_dict() | started)
    torch.testing.assert_close(net(x), found - found.mean(0))


def test_padding_changes_nothing(source):
    net, x = trunk(5, source=source), padded().support.x[0]
    torch.testing.assert_close(net(torch.nn.functional.pad(x, (0, 4))), net(x))


def test_nothing_below_the_first_learned_block_is_remembered(source):
    net, seen = trunk(5, source=source, blocks=1), []
    below = net.get_submodule("body.below.network.blocks.0")
    below.register_forward_hook(lambda layer, args, out: seen.append(out.requires_grad))
    assert net(padded().support.x[0]).requires_grad and seen == [False]


def test_normalisation_by_the_batch_goes_by_what_the_network_knows(tmp_path):
    (tmp_path / "own.py").write_text(
        "import headstart, torch\nfrom torch import nn\n\ndef make():\n    torch.manual_seed(0)\n"
        "    block = lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))\n"
        "    net = nn.Sequential(block(), block())\n    net(torch.randn(9, 3, 4, 4))\n"
        "    return headstart.of_images(net, size=4, mean=[0] * 3, std=[1] * 3)\n"
    )
    own = f"{tmp_path / 'own.py'}:make"
    net, x = trunk((3, 4, 4), source=own, tuned="last"), torch.rand(1, 6, 3, 4, 4)
    model = functional(net)
    alone, together = (model.apply(model.params, {}, part)[0] for part in (x[:, :1], x))
    torch.testing.assert_close(alone, together[:, :1])


def test_what_cannot_be_learned(source, tmp_path):
    with pytest.raises(UsageError, match="2 blocks of one type in a row, but 3"):
        trunk(5, source=source, tuned="last", blocks=3)
    assert last_blocks(nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 2)), 1) == ("2",)
    assert steady(nn.Sequential(nn.Dropout(0.3)))[0].p == 0


def test_adapters_as_peft_has_them(source, tmp_path):
    from safetensors.torch import save_file

    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q", "v"], "layers_to_transform": [1]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    net = trunk(5, source=source, tuned=tmp_path)
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, LowRank)}
    above = "body.above.network.blocks.1"
    assert set(layers) == {f"{above}.q", f"{above}.v"} and layers[f"{above}.q"].strength == 3
    weights = {
        f"base_model.model.blocks.1.{name}.lora_{part}.weight": torch.ones(*shape, dtype=torch.float64)
        for name in "qv"
        for part, shape in (("A", (2, 4)), ("B", (4, 2)))
    }
    save_file(weights, tmp_path / "adapter_model.safetensors")
    given = trunk(5, source=source, tuned=tmp_path).get_submodule(f"{above}.q")
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(given(x), given.layer(x) + 3 * 2 * x.sum(-1, keepdim=True))
    save_file({**weights, "more": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(FileError, match="does not fit its configuration: more"):
        trunk(5, source=source, tuned=tmp_path)
    for name, value, words in (
        ("use_dora", True, "use_dora"),
        ("peft_type", "IA3", "is of IA3"),
        ("bias", "all", "bias"),
        ("exclude_modules", ["v"], "exclude_modules"),
        ("init_lora_weights", "pissa", "init_lora_weights"),
        (
            "target_modules",
            ["q", "elsewhere"],
            "beside 'elsewhere', but no linear layer in the layers .1. is called so",
        ),
        ("target_modules", None, "name no layers"),
        ("target_modules", "(", "name no layers"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**told, name: value}))
        with pytest.raises(FileError, match=words):
            trunk(5, source=source, tuned=tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(FileError, match="can hold programs"):  # not: adapters that start at nothing
        trunk(5, source=source, tuned=tmp_path)


def test_a_task_moves_adapters_alone(source):
    net = trunk(5, 2, source=source, rank=2).double()
    learner = maml(net, rule=rules.chain(rules.only(LowRank), rules.scale(0.1)), steps=1)
    meta = learner.init(None)
    adapted, _ = learner.adapt(meta, padded().support)
    assert {name.rpartition(".")[2] for name in adapted.params} == {"down", "up"}
    gradient, _ = meta_gradient(learner, meta, padded())
    assert float(gradient.params["body.blocks.0.v.up"].norm()) > 0
