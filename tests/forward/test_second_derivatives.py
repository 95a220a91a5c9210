"""Which operations are taken for differentiable twice."""

import torch
import torch.nn.functional as F

from headstart.forward import second_derivatives

#: A function of a tensor (3, 4), all of which is well away from kinks, for each operation that is taken for right.
RIGHT = {
    "Abs": torch.abs,
    "AdaptiveAvgPool2D": lambda x: F.adaptive_avg_pool2d(x.view(1, 3, 2, 2), 2),
    "Add": lambda x: x + 2 * x,
    "Addmm": lambda x: torch.addmm(x, x[:, :3], x),
    "Alias": lambda x: torch.ops.aten.alias(x),
    "AvgPool2D": lambda x: F.avg_pool2d(x.view(1, 3, 2, 2), 2),
    "Baddbmm": lambda x: torch.baddbmm(x[None], x[None, :, :3], x[None]),
    "Bmm": lambda x: torch.bmm(x[None], x.T[None]),
    "Cat": lambda x: torch.cat([x, x * x]),
    "Clone": torch.clone,
    "Convolution": lambda x: F.conv2d(x.view(1, 3, 2, 2), x[:, :3, None, None], padding=1, bias=x[:, 0]),
    "Div": lambda x: x / (x + 9),
    "Elu": F.elu,
    "Exp": torch.exp,
    "Expand": lambda x: x[None].expand(2, 3, 4),
    "Gelu": F.gelu,
    "LeakyRelu": F.leaky_relu,
    "Log": lambda x: (x + 9).log(),
    "LogSoftmax": lambda x: x.log_softmax(1),
    "MaskedFill": lambda x: x.masked_fill(torch.eye(3, 4).bool(), 2.0),
    "MaxPool2DWithIndices": lambda x: F.max_pool2d(x.view(1, 3, 2, 2), 2),
    "Mean": lambda x: x.mean(1),
    "Mm": lambda x: x @ x.T,
    "Mul": lambda x: x * x,
    "NativeBatchNorm": lambda x: F.batch_norm(x, None, None, x[0], x[1], True),
    "NativeGroupNorm": lambda x: F.group_norm(x[None], 3, x[:, 0], x[:, 1]),
    "NativeLayerNorm": lambda x: F.layer_norm(x, (4,), x[0], x[1]),
    "Neg": torch.neg,
    "Permute": lambda x: x.permute(1, 0),
    "Pow": lambda x: (x + 9) ** 3,
    "Relu": F.relu,
    "ReshapeAlias": lambda x: torch.ops.aten._reshape_alias(x, (4, 3), (3, 1)),
    "Rsqrt": lambda x: (x + 9).rsqrt(),
    "Select": lambda x: x[1],
    "Sigmoid": torch.sigmoid,
    "Silu": F.silu,
    "Slice": lambda x: x[1:],
    "Softmax": lambda x: x.softmax(1),
    "Split": lambda x: x.split(2)[0],
    "Sqrt": lambda x: (x + 9).sqrt(),
    "Squeeze": lambda x: x[:, :1].squeeze(1),
    "Stack": lambda x: torch.stack([x, x * x]),
    "Sub": lambda x: x * x - x,
    "Sum": lambda x: x.sum(0),
    "T": lambda x: x.t(),
    "Tanh": torch.tanh,
    "Transpose": lambda x: x.transpose(0, 1),
    "UnsafeView": lambda x: torch.ops.aten._unsafe_view(x, (4, 3)),
    "Unsqueeze": lambda x: x.unsqueeze(0),
    "View": lambda x: x.view(4, 3),
    "Where": lambda x: torch.where(torch.eye(3, 4).bool(), x, x * x),
}


def test_all_operations_that_are_taken_for_right_are():
    assert {name.removesuffix("Backward0") for name in second_derivatives._RIGHT if "Backward0" in name} == RIGHT.keys()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    for name, function in RIGHT.items():
        out = function(x)
        made = {type(node).__name__ for node in (out.grad_fn, *(n for n, _ in out.grad_fn.next_functions if n))}
        assert any(other.startswith(f"{name}Backward") for other in made), (name, made)
        assert torch.autograd.gradgradcheck(lambda x, function=function: function(x).square(), x, fast_mode=True), name
