"""Operators that PyTorch's ONNX exporter lacks, or that ONNX Runtime has in float32 only.

ONNX Runtime's kernels of Atan and Cosh take float32. Oriented boxes are computed in float64: the hyperbolic cosine is
written with exponentials, and angles alone are rounded to float32, which moves a corner by 1e-4 px at most.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

import uveitis_assets.detection.models.per_class_nms  # noqa: F401  registers the operator

OPSET = 20
_ALL = 2**63 - 1
# Float32 numbers below every score; rows of the lower are not selected.
_LOWEST, _NEVER = -3.0e38, -3.2e38


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Functions that write operators of PyTorch as ONNX nodes, for ``torch.onnx.export``."""
    # Not an import statement: with onnxscript's types every argument would have to be cast.
    op: Any = import_module("onnxscript").opset20

    def nms(boxes: Any, scores: Any, labels: Any, iou: float) -> Any:
        """One NonMaxSuppression with a row of scores for each class, without those of the others."""
        zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
        first, second = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
        highest = op.ReduceMax(op.Concat(labels, first, axis=0), keepdims=0)
        classes = op.Range(zero, op.Add(highest, one), one)
        own = op.Equal(op.Unsqueeze(classes, second), op.Unsqueeze(labels, first))
        table = op.Where(own, op.Unsqueeze(scores, first), op.Constant(value_float=_NEVER))
        selected = op.NonMaxSuppression(
            op.Unsqueeze(boxes, first),
            op.Unsqueeze(table, first),
            op.Constant(value_ints=[_ALL]),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[_LOWEST]),
        )
        rows = op.Gather(selected, op.Constant(value_int=2), axis=1)
        number = op.Shape(rows)
        # TopK puts equal values in the order of their index: rows as given, then best score first.
        rows, _ = op.TopK(rows, number, largest=0)
        _, order = op.TopK(op.Gather(scores, rows), number)
        return op.Gather(rows, order)

    def hypot(a: Any, b: Any) -> Any:
        return op.Sqrt(op.Add(op.Mul(a, a), op.Mul(b, b)))

    def cosh(x: Any) -> Any:
        half = op.CastLike(op.Constant(value_float=0.5), x)
        return op.Mul(op.Add(op.Exp(x), op.Exp(op.Neg(x))), half)

    def atan2(y: Any, x: Any) -> Any:
        zero, pi = (op.CastLike(op.Constant(value_float=value), x) for value in (0.0, 3.141592653589793))
        angle = op.CastLike(op.Atan(op.Cast(op.Div(y, x), to=1)), x)
        turned = op.Where(op.Less(y, zero), op.Sub(angle, pi), op.Add(angle, pi))
        result = op.Where(op.Less(x, zero), turned, angle)
        return op.Where(op.IsNaN(result), zero, result)

    return {
        torch.ops.uveitis_assets.per_class_nms.default: nms,
        torch.ops.prims.hypot.default: hypot,
        torch.ops.aten.hypot.default: hypot,
        torch.ops.aten.cosh.default: cosh,
        torch.ops.aten.atan2.default: atan2,
    }
