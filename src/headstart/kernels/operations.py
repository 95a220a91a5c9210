"""The operations that kernels compute, as C: a row is an operation of PyTorch, and the expression of its arguments."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch

ATEN = torch.ops.aten

Expression: TypeAlias = Callable[..., str]
"""``(*arguments, **options) -> what the operation gives``, as C; arguments that are no numbers are left out."""

#: The types of numbers that there are in kernels.
TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.bool: "_Bool",
    torch.uint8: "uint8_t",
}


class Row(NamedTuple):
    """How an operation on numbers is written."""

    expression: Expression
    within: str = "result"
    """In which type it computes: that of its ``"result"``, which may have to be ``"real"`` or be a ``"choice"`` by
    what stays as it is, or the one that its ``"arguments"`` have in common."""


def _written(text: str) -> Expression:
    return lambda *arguments: text.format(*(f"({one})" for one in arguments))


def _called(name: str) -> Expression:
    return lambda *arguments: f"MATH({name})({', '.join(arguments)})"


def _sum(sign: str) -> Expression:
    return lambda a, b, alpha="1": f"({a}) {sign} ({b})" + ("" if alpha == "1" else f" * ({alpha})")


def _power(base: str, exponent: str) -> str:
    x = f"({base})"
    known = {"2": f"{x} * {x}", "3": f"{x} * {x} * {x}", "1": x, "0": "1", "-1": f"1 / {x}", "-2": f"1 / ({x} * {x})"}
    known |= {"0.5": f"MATH(sqrt){x}", "-0.5": f"1 / MATH(sqrt){x}"}
    return known.get(exponent.strip("()").removesuffix("f").removesuffix(".0"), f"MATH(pow)({base}, {exponent})")


def _clamped(x: str, low: str | None = None, high: str | None = None) -> str:
    if "NAN" in (low, high):
        return "NAN"
    above = x if low is None else f"(({x}) < ({low}) ? ({low}) : ({x}))"
    return above if high is None else f"(({above}) > ({high}) ? ({high}) : ({above}))"


def _rows() -> dict[Any, Row]:
    found: dict[Any, Row] = {}

    def add(names: str, expression: Expression, within: str = "result") -> None:
        for name in names.split():
            packet, _, kind = name.partition(".")
            found[getattr(getattr(ATEN, packet), kind or "default")] = Row(expression, within)

    add("add.Tensor add.Scalar", _sum("+"))
    add("sub.Tensor sub.Scalar", _sum("-"))
    add("rsub.Scalar rsub.Tensor", lambda a, b, alpha="1": _sum("-")(b, a, alpha))
    add("mul.Tensor mul.Scalar", _written("{} * {}"))
    add("div.Tensor div.Scalar", _written("{} / {}"), "real")
    add("neg", _written("-{}"))
    add("reciprocal", _written("1 / {}"), "real")
    add("pow.Tensor_Scalar", _power, "real")
    add("pow.Tensor_Tensor", _called("pow"), "real")
    for name in ("exp", "log", "expm1", "log1p", "sqrt", "tanh", "sin", "cos", "erf", "floor", "ceil", "atan", "sinh"):
        add(name, _called(name), "real")
    add("rsqrt", _written("1 / MATH(sqrt){}"), "real")
    add("abs", _called("fabs"), "real")
    add("square", _written("{0} * {0}"))
    add("sigmoid", _written("1 / (1 + MATH(exp)(-{}))"), "real")
    add("sign sgn", _written("({0} > 0) - ({0} < 0)"))
    add("relu", _written("{0} < 0 ? 0 : {0}"))
    add("leaky_relu", lambda x, slope="0.01": f"({x}) > 0 ? ({x}) : ({x}) * ({slope})")
    add("threshold_backward", _written("{1} <= {2} ? 0 : {0}"))
    add("leaky_relu_backward", _written("{1} > 0 ? {0} : {0} * {2}"))
    add("tanh_backward", _written("{0} * (1 - {1} * {1})"))
    add("sigmoid_backward", _written("{0} * (1 - {1}) * {1}"))
    add("maximum", _written("{0} > {1} || {0} != {0} ? {0} : {1}"))
    add("minimum", _written("{0} < {1} || {0} != {0} ? {0} : {1}"))
    add("clamp", _clamped)
    add("clamp_min", _clamped)
    add("clamp_max", lambda x, high: _clamped(x, None, high))
    add("addcmul", lambda a, b, c, value="1": f"({a}) + ({value}) * ({b}) * ({c})")
    add("addcdiv", lambda a, b, c, value="1": f"({a}) + ({value}) * ({b}) / ({c})")
    add("where.self where.ScalarOther where.ScalarSelf where.Scalar", _written("{} ? {} : {}"), "choice")
    add("masked_fill.Scalar masked_fill.Tensor", _written("{1} ? {2} : {0}"), "choice")
    for name, sign in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="), ("eq", "=="), ("ne", "!=")):
        add(f"{name}.Tensor {name}.Scalar", _written(f"{{}} {sign} {{}}"), "arguments")
    add("logical_and", _written("{} && {}"), "arguments")
    add("logical_or", _written("{} || {}"), "arguments")
    add("logical_not", _written("!{}"), "arguments")
    add("isnan", _written("{0} != {0}"), "arguments")
    add("bitwise_and.Tensor", _written("{} & {}"))
    add("bitwise_or.Tensor", _written("{} | {}"))
    add("clone _to_copy alias lift_fresh_copy", lambda x: x)
    add("full full_like new_full scalar_tensor", lambda *values: values[-1])
    add("zeros zeros_like new_zeros", lambda *_: "0")
    add("ones ones_like new_ones", lambda *_: "1")
    found[torch.ops.prims.div.default] = found[ATEN.div.Tensor]
    found[torch.ops.prims.convert_element_type.default] = Row(lambda x: x)
    return found


#: What is computed of one number each of some tensors.
POINTWISE = _rows()

#: What sums up numbers along some dimensions: what it begins with, and how a sum goes on by a number.
REDUCTIONS: dict[Any, tuple[str, str]] = {
    torch.ops.prims.sum.default: ("0", "{} + {}"),
    ATEN.all.default: ("1", "{} && {}"),
    ATEN.all.dim: ("1", "{} && {}"),
    ATEN.any.default: ("0", "{} || {}"),
    ATEN.any.dim: ("0", "{} || {}"),
    ATEN.sum.dim_IntList: ("0", "{} + {}"),
    ATEN.sum.default: ("0", "{} + {}"),
    ATEN.mean.dim: ("0", "{} + {}"),
    ATEN.mean.default: ("0", "{} + {}"),
    ATEN.amax.default: ("-INFINITY", "{1} > {0} || {1} != {1} ? {1} : {0}"),
    ATEN.amin.default: ("INFINITY", "{1} < {0} || {1} != {1} ? {1} : {0}"),
}
MEANS = (ATEN.mean.dim, ATEN.mean.default)

#: Of which none begins as less or more than all whole numbers.
EXTREMES = (ATEN.amax.default, ATEN.amin.default)

#: Products, and at which place of their arguments is what they are added to.
PRODUCTS: dict[Any, int | None] = {
    ATEN.mm.default: None,
    ATEN.bmm.default: None,
    ATEN.addmm.default: 0,
    ATEN.baddbmm.default: 0,
    ATEN.convolution.default: 2,
}

#: What puts tensors in places of another one, in which there are zeros else.
COPIES = {
    ATEN.constant_pad_nd.default,
    ATEN.cat.default,
    ATEN.stack.default,
    ATEN.select_backward.default,
    ATEN.slice_backward.default,
}

#: What takes a number of its first tensor from where another one says, along a dimension.
LOOKUPS = {ATEN.gather.default, ATEN.index_select.default, ATEN.embedding.default}

#: Views that count through numbers in their order.
RESHAPES = {ATEN.view.default, ATEN._unsafe_view.default, ATEN.reshape.default}

#: All of them.
KNOWN = {*POINTWISE, *REDUCTIONS, *PRODUCTS, *COPIES, *LOOKUPS, *RESHAPES}
