import pytest
import torch

from headstart.core.adjoints.leaves import added, draws, leaf, pack, slopes_of, tensors_of, wanted


def test_a_tree_comes_back_as_it_was_with_what_is_no_tensor():
    tree = {"a": (torch.ones(2), 3, None), "b": [torch.zeros(1, dtype=torch.int64), "text"]}
    packed, tensors = pack(tree)
    assert len(tensors) == 2 and tensors_of(tree) == tensors
    found = packed.unpack(tensor + 1 for tensor in tensors)
    assert found["a"][1:] == (3, None) and found["b"][1] == "text"
    assert found["a"][0].tolist() == [2, 2] and found["b"][0].tolist() == [1]


def test_a_leaf_has_no_history_and_asks_for_what_is_needed_and_exists():
    value = torch.ones(2, requires_grad=True) * 2
    whole = torch.ones(2, dtype=torch.int64)
    assert leaf(value).is_leaf and leaf(value).requires_grad and leaf(value, True).requires_grad
    assert not leaf(value, False).requires_grad and not leaf(value.detach()).requires_grad
    assert leaf(value.detach(), True).requires_grad and not leaf(whole, True).requires_grad
    assert leaf("text", True) == "text" and leaf(None) is None and leaf(3) == 3
    assert value.grad_fn is not None  # as it was


def test_slopes_are_of_the_leaves_that_ask_for_them():
    x, y, other = (torch.full((2,), number, requires_grad=True) for number in (2.0, 3.0, 5.0))
    fixed = torch.ones(2)
    found = slopes_of([x * y, fixed, None], [torch.ones(2), torch.ones(2), torch.ones(2)], [x, fixed, y, other])
    assert [None if slope is None else slope.tolist() for slope in found] == [[3, 3], None, [2, 2], None]
    assert slopes_of([x * y], [None], [x]) == [None]
    assert [None if slope is None else slope.item() for slope in added([None, x[0], None], [None, y[0], y[0]])] == [
        *(None, 5, 3)
    ]


def test_a_derivative_is_wanted_where_gradients_are_on_and_asked_for():
    asked = {"a": (torch.ones(1), torch.ones(1, requires_grad=True))}
    assert wanted(asked) and not wanted({"a": 1, "b": torch.ones(1)})
    with torch.no_grad():
        assert not wanted(asked)


@pytest.mark.parametrize("between", [0, 3])
def test_generators_draw_again_what_they_drew(between):
    before = draws(())
    first = torch.rand(4)
    torch.rand(between)
    assert not draws(()) == before
    before.restore()
    assert draws(()) == before and torch.equal(torch.rand(4), first)
    assert not before == "a text"
