import pytest
import torch
from torch import nn

from headstart.forward.functional import functional


def run(module, x, seed=None, draw=0, taskmap="vmap"):
    function = functional(nn.Sequential(module), taskmap=taskmap)
    return function.apply(function.params, {}, x, seed=seed, draw=draw)[0]


SEEDS = torch.tensor([1, 2, 2**62 + 5])


def test_masks_have_the_right_share_and_scale():
    out = run(nn.Dropout(0.3), torch.ones(3, 200, 100), SEEDS)
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    dropped = (out == 0).double().mean((1, 2))
    deviation = (0.3 * 0.7 / 20_000) ** 0.5
    assert (dropped - 0.3).abs().max() < 4.5 * deviation


def test_masks_differ_by_task_example_element_pass_and_layer():
    x = torch.ones(3, 4, 200)
    out = run(nn.Dropout(0.5), x, SEEDS)
    flat = [row.tolist() for row in out.flatten(0, 1)]
    assert len({tuple(row) for row in flat}) == 12
    assert not torch.equal(out, run(nn.Dropout(0.5), x, SEEDS, draw=1))
    twice = run(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)), x, SEEDS)
    kept = (twice != 0).double().mean().item()
    assert abs(kept - 0.25) < 0.05, "two layers with one mask would keep half"


def test_a_layer_that_is_used_twice_draws_twice():
    layer = nn.Dropout(0.5)
    kept = (run(nn.Sequential(layer, layer), torch.ones(3, 4, 500), SEEDS) != 0).double().mean().item()
    assert abs(kept - 0.25) < 0.03


def test_neighbouring_seeds_and_elements_are_not_correlated():
    out = (run(nn.Dropout(0.5), torch.ones(200, 1, 400), torch.arange(200)) != 0).double()[:, 0]
    across = torch.corrcoef(torch.stack([out[:-1].flatten(), out[1:].flatten()]))[0, 1]
    along = torch.corrcoef(torch.stack([out[:, :-1].flatten(), out[:, 1:].flatten()]))[0, 1]
    assert max(abs(across), abs(along)) < 4.5 / 80_000**0.5


@pytest.mark.parametrize("layer", [nn.Dropout(0.4), nn.Dropout2d(0.4)])
def test_masks_are_the_same_for_vmap_and_loop_and_for_a_task_alone(layer):
    x = torch.randn(3, 2, 3, 4, 4)
    together = run(layer, x, SEEDS)
    assert torch.equal(together, run(layer, x, SEEDS, taskmap="loop"))
    assert torch.equal(together[1:2], run(layer, x[1:2], SEEDS[1:2]))


@pytest.mark.parametrize(("layer", "axes"), [(nn.Dropout1d(0.5), 1), (nn.Dropout2d(0.5), 2), (nn.Dropout3d(0.5), 3)])
def test_channel_dropout_drops_whole_channels(layer, axes):
    out = run(layer, torch.ones(3, 5, 20, *(2,) * axes), SEEDS).flatten(3)
    assert torch.equal(out.min(-1).values, out.max(-1).values)
    assert 0.3 < (out == 0).double().mean() < 0.7


def test_without_a_seed_nothing_is_dropped():
    x = torch.randn(3, 4, 5)
    module = nn.Dropout(0.5).train()
    assert torch.equal(run(module, x), x)


@pytest.mark.parametrize(("p", "factor"), [(0.0, 1), (1.0, 0)])
def test_the_extreme_probabilities(p, factor):
    x = torch.randn(3, 4, 5)
    assert torch.equal(run(nn.Dropout(p), x, SEEDS), factor * x)


def test_global_generators_are_left_alone():
    before = torch.get_rng_state()
    run(nn.Dropout(0.5), torch.ones(3, 4, 5), SEEDS)
    assert torch.equal(before, torch.get_rng_state())
