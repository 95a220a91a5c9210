import logging
from collections import Counter

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import headstart
from headstart import Checkpointed, FirstOrder, Unrolled, rules
from headstart.algorithms.adapters import LowRank, low_rank
from headstart.errors import ShapeError, UsageError
from headstart.forward.functional import functional
from headstart.forward.trunk import split
from headstart.models.transformer import transformer
from headstart.testing import check_learner, random_episodes

TOKENS, LENGTH, WIDTH, RATE, STEPS = 11, 5, 6, 0.1, 3


def net(depth=2, **options):
    return transformer(LENGTH, 3, vocabulary=TOKENS, width=WIDTH, depth=depth, heads=2, **options).double()


def adapted(what="block*"):
    """Return a frozen transformer with adapters, which have been moved a little, and a head that is not frozen."""
    module = net().requires_grad_(False)
    module.head.requires_grad_(True)
    module = low_rank(module, rank=2, what=what)
    for layer in module.modules():
        if isinstance(layer, LowRank):
            nn.init.normal_(layer.up, std=0.3)
    return module


def moves():
    return rules.chain(rules.only(LowRank, "head"), rules.scale(RATE))


def episodes():
    return random_episodes((LENGTH,), tokens=TOKENS)


def test_its_shapes_and_size():
    model = transformer((20,), 5)
    block = 4 * (64 * 64 + 64) + 2 * 64 * 256 + 64 + 256 + 4 * 64
    assert sum(p.numel() for p in model.parameters()) == (256 + 20) * 64 + 2 * block + 2 * 64 + 64 * 5 + 5
    assert model(torch.randint(256, (3, 20))).shape == (3, 5)
    assert transformer(20, None)(torch.randint(256, (3, 20))).shape == (3, 64)


def test_the_blocks_are_those_of_pytorch():
    model = net()
    ids = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 0, 0, 0], [6, 0, 5, 0, 3]])
    x = model.embedding.token(ids) + model.embedding.position.weight
    for block in (model.block1, model.block2):
        attention = block.attention
        other = nn.TransformerEncoderLayer(
            WIDTH, 2, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
        )
        inputs = (attention.query, attention.key, attention.value)
        pairs = {"norm1": block.attention_norm, "norm2": block.feed_norm, "linear1": block.widen}
        pairs |= {"linear2": block.narrow, "self_attn.out_proj": attention.out}
        state = {f"{name}.{key}": value for name, layer in pairs.items() for key, value in layer.state_dict().items()}
        state["self_attn.in_proj_weight"] = torch.cat([layer.weight for layer in inputs])
        state["self_attn.in_proj_bias"] = torch.cat([layer.bias for layer in inputs])
        other.load_state_dict(state)
        x = other(x, src_key_padding_mask=ids == 0)
    x = model.pool.norm(x)
    means = torch.stack([x[i, ids[i] != 0].mean(0) for i in range(3)])
    assert torch.allclose(model(ids), model.head(means))


def test_padding_counts_nowhere():
    model = net()
    short = torch.tensor([[3, 1], [4, 2]])
    long = nn.functional.pad(short, (0, 3))
    assert torch.allclose(model(short), model(long))
    nn.init.normal_(model.embedding.position.weight[2:])
    nn.init.normal_(model.embedding.token.weight[0])
    assert torch.allclose(model(short), model(long))
    assert not torch.allclose(model(short), model(short.flip(1)))


def test_a_text_without_tokens_has_no_features_and_finite_gradients():
    model = net()
    outputs = model(torch.zeros(2, LENGTH, dtype=torch.int64))
    assert torch.equal(outputs, model.head.bias.expand(2, 3))
    outputs.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_another_padding_id():
    ids = torch.tensor([[3, 1, 7, 7, 7]])
    model = net(padding=7)
    assert torch.allclose(model(ids), model(ids[:, :2]))
    assert not torch.allclose(net()(ids), net()(ids[:, :2]))


@pytest.mark.parametrize(
    "adjoint", [Unrolled(), Checkpointed(every=2), FirstOrder()], ids=["all", "some", "first order"]
)
def test_it_keeps_the_contract(adjoint):
    module = net(depth=1)
    check_learner(
        lambda taskmap: headstart.maml(module, rate=RATE, steps=2, adjoint=adjoint, taskmap=taskmap),
        episodes(),
        module=module,
        directions=2,
        order=True,
    )


def test_dropout_is_drawn_from_the_seed():
    model = functional(net(dropout=0.5))
    x, seed = episodes().support.x, torch.arange(3)
    first, again = (model.apply(model.params, {}, x, seed=seed)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, model.apply(model.params, {}, x, seed=seed + 1)[0])
    assert not torch.equal(first, model.apply(model.params, {}, x)[0])


@pytest.mark.parametrize("make", [net, adapted], ids=["all", "adapters"])
def test_second_derivatives_are_certified_and_none_goes_unchecked(make, caplog):
    with caplog.at_level(logging.DEBUG, logger="headstart"):
        functional(make()).certify(episodes().support.x)
    assert "not checked" not in caplog.text


def plain_meta_gradient(module, meta, moving, episodes):
    """Return MAML's meta-gradient by a loop over tasks and steps, and nothing of ours."""
    theta = {name: value.detach().clone().requires_grad_() for name, value in meta.params.items()}
    total = torch.zeros((), dtype=torch.float64)

    def loss(params, batch, task):
        return nn.functional.cross_entropy(functional_call(module, params, (batch.x[task],)), batch.y[task])

    with sdpa_kernel(SDPBackend.MATH):
        tasks = len(episodes.support.y)
        for task in range(tasks):
            params = dict(theta)
            for _ in range(STEPS):
                grads = torch.autograd.grad(
                    loss(params, episodes.support, task), [params[name] for name in moving], create_graph=True
                )
                params |= {name: params[name] - RATE * grad for name, grad in zip(moving, grads)}
            total = total + loss(params, episodes.query, task) / tasks
        grads = torch.autograd.grad(total, list(theta.values()))
    return dict(zip(theta, grads))


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize("make", [net, adapted], ids=["all", "adapters"])
def test_the_meta_gradient_is_that_of_a_plain_loop(make, taskmap):
    module = make()
    options = {} if make is net else {"rule": moves()}
    learner = headstart.maml(module, rate=RATE, steps=STEPS, taskmap=taskmap, **options)
    meta = learner.init(None)
    moving = sorted(learner.adapt(meta, episodes().support)[0].params)
    assert moving == sorted(meta.params)
    gradient, _ = headstart.meta_gradient(learner, meta, episodes())
    expected = plain_meta_gradient(module, meta, moving, episodes())
    scale = max(value.abs().max() for value in expected.values())
    assert scale > 1e-2
    for name, value in expected.items():
        assert (gradient.params[name] - value).abs().max() <= 1e-13 * max(scale, 1), name


def test_adapters_reach_every_layer_of_the_blocks_and_the_frozen_part_is_no_parameter():
    module = adapted()
    layers = ("attention.query", "attention.key", "attention.value", "attention.out", "widen", "narrow")
    expected = {f"block{i}.{layer}" for i in (1, 2) for layer in layers}
    assert {name for name, layer in module.named_modules() if isinstance(layer, LowRank)} == expected
    only_queries = low_rank(net(), what="block*.attention.query")
    assert sum(isinstance(layer, LowRank) for layer in only_queries.modules()) == 2
    meta = headstart.maml(module, rule=moves()).init(None)
    assert meta.params.keys() == {f"{n}.{part}" for n in expected for part in ("up", "down")} | {
        *("head.weight", "head.bias")
    }


class Products(TorchDispatchMode):
    """Counts matrix products by the shapes of their factors."""

    def __init__(self):
        super().__init__()
        self.shapes: Counter[tuple[tuple[int, ...], ...]] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "baddbmm", "matmul", "linear"):
            self.shapes[tuple(tuple(arg.shape) for arg in args if isinstance(arg, torch.Tensor) and arg.ndim > 1)] += 1
        return function(*args, **(kwargs or {}))


def products_of(learner, drawn):
    meta = learner.init(None)
    headstart.meta_gradient(learner, meta, drawn)  # certifies once, task by task
    with Products() as products:
        headstart.meta_gradient(learner, meta, drawn)
    return products.shapes


def test_all_tasks_go_through_a_frozen_weight_in_one_product():
    tasks, examples = 3, 7
    options = {"steps": STEPS, "taskmap": "vmap"}
    drawn = random_episodes((LENGTH,), tokens=TOKENS, tasks=tasks, support=examples, query=examples)
    rows, wide = tasks * examples * LENGTH, 4 * WIDTH
    weights = [(WIDTH, wide), (wide, WIDTH), (WIDTH, WIDTH)]

    def expanded(shapes):
        """Return the products with a weight of a block for each task."""
        return [pair for pair in shapes for shape in pair if len(shape) > 2 and shape[-2:] in weights]

    shapes = products_of(headstart.maml(adapted(), rule=moves(), **options), drawn)
    assert not expanded(shapes)
    # the widening layers of both blocks, in the steps and on the query set; what is added to six layers of each
    assert shapes[(rows, WIDTH), (WIDTH, wide)] >= 2 * (STEPS + 1)
    assert shapes[(tasks, examples * LENGTH, WIDTH), (tasks, WIDTH, 2)] >= 2 * 5 * (STEPS + 1)
    # where the blocks themselves move, each task has its own
    assert expanded(products_of(headstart.maml(net(), **options), drawn))


def test_layers_below_the_first_adapter_are_a_trunk():
    module = adapted("block2*")
    moving = {name for name, p in module.named_parameters() if p.requires_grad}
    trunk, rest = split(module, moving)
    assert list(trunk._modules) == ["embedding", "block1"]
    assert list(rest._modules) == ["block2", "pool", "head"]
    x = episodes().support.x
    whole, below, above = functional(module), functional(trunk), functional(rest)
    features = below.apply({}, {}, x)[0]
    assert not features.requires_grad and features.shape == (3, 4, LENGTH, WIDTH + 1)
    torch.testing.assert_close(above.apply(above.params, {}, features)[0], whole.apply(whole.params, {}, x)[0])


def test_inputs_that_are_no_texts_are_refused():
    model = net()
    with pytest.raises(ShapeError, match=r"at most 5 tokens a text; got \(2, 6\) of torch.int64"):
        model(torch.ones(2, 6, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"integer type.*got \(2, 5\) of torch.float32"):
        model(torch.ones(2, 5))
    with pytest.raises(ShapeError, match=r"token ids \(length,\); got inputs of shape \(3, 84, 84\)"):
        transformer((3, 84, 84), 5)


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize("task", [0, 2])
@pytest.mark.parametrize("bad", [-1, TOKENS])
def test_ids_out_of_range_are_refused_and_never_those_of_another_task(bad, task, taskmap):
    learner = headstart.maml(net(depth=1), steps=1, taskmap=taskmap)
    support = episodes().support
    ids = support.x.clone()
    ids[task, 0, 0] = bad
    with pytest.raises(
        ShapeError, match=f"token ids go from .*{bad}.*, but the vocabulary has 11: they must be 0 to 10"
    ):
        learner.adapt(learner.init(None), support._replace(x=ids))


def test_sizes_that_do_not_fit_are_refused():
    for options in ({"width": 10, "heads": 4}, {"depth": 0}, {"vocabulary": 0}):
        with pytest.raises(UsageError, match="positive sizes and a width that the heads divide"):
            transformer(5, 3, **options)
    with pytest.raises(UsageError, match="one of the 11 token ids from 0, got 11"):
        transformer(5, 3, vocabulary=11, padding=11)
