import torch

from headstart.core.live_bytes import LiveBytes


def test_what_is_made_counts_for_as_long_as_it_lives():
    before = torch.zeros(10**6)
    with LiveBytes() as live:
        kept = torch.zeros(100)
        gone = torch.zeros(200)
        assert live.now == 1200
        view = kept.view(10, 10)
        before += 1  # in place
        del gone
        assert live.now == 400
        del kept
        assert live.now == 400  # the view lives
        del view
    assert (live.now, live.peak) == (0, 1200)


def test_what_autograd_saves_lives_with_its_graph():
    x = torch.zeros(100, dtype=torch.float64, requires_grad=True)
    with LiveBytes() as live:
        total = x.sin().cos().sum()
        assert live.now == 808  # sin x for the backward pass of the cosine, and the total
        total.backward()
        assert live.now == 808  # the gradient in place of what was saved


def test_tensors_under_vmap_count_in_full():
    with LiveBytes() as live:
        out = torch.func.vmap(lambda row: row * 2)(torch.zeros(5, 100))
    assert live.now == out.nbytes == 2000 and live.peak == 4000
