import torch

from headstart.core import tree


def test_subtraction_keeps_what_the_other_side_lacks():
    out = tree.subtract({"a": torch.tensor(3.0), "b": torch.tensor(1.0)}, {"a": torch.tensor(1.0)})
    assert out["a"] == 2 and out["b"] == 1


def test_the_norm_of_a_task_takes_all_its_tensors():
    params = {"a": torch.tensor([[3.0], [0.0]]), "b": torch.tensor([[[0.0, 4.0]], [[0.0, 0.0]]])}
    assert tree.per_task_norm(params).tolist() == [5.0, 0.0]


def test_the_root_has_derivative_zero_at_zero():
    square = torch.tensor([4.0, 0.0], requires_grad=True)
    root = tree.safe_sqrt(square)
    (slope,) = torch.autograd.grad(root.sum(), square, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), square)
    assert root.tolist() == [2.0, 0.0] and slope.tolist() == [0.25, 0.0]
    assert curvature.tolist() == [-1 / 32, 0.0]


def test_detached_leaves_are_copies():
    value = torch.ones(2)
    (leaf,) = tree.detached({"a": value}).values()
    leaf.data.zero_()
    assert leaf.requires_grad and leaf.is_leaf and value.tolist() == [1, 1]


def test_a_number_a_task_is_broadcast_over_the_rest():
    assert tree.over_tasks(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4)).shape == (2, 1, 1)


def test_a_tree_comes_back_as_it_was_with_what_is_no_tensor():
    whole = {"a": (torch.ones(2), 3, None), "b": [torch.zeros(1, dtype=torch.int64), "text"]}
    packed, tensors = tree.pack(whole)
    assert len(tensors) == 2 and tree.tensors_of(whole) == tensors
    found = packed.unpack(tensor + 1 for tensor in tensors)
    assert found["a"][1:] == (3, None) and found["b"][1] == "text"
    assert found["a"][0].tolist() == [2, 2] and found["b"][0].tolist() == [1]
