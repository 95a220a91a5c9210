import torch

from headstart.core.adjoints.pullback import added, leaf, slopes_of, wanted


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
