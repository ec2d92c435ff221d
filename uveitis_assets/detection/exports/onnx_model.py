"""A detector as the bytes of an ONNX file: the same detector and facts give the same bytes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from uveitis_assets.detection.exports.exportable_detector import OUTPUTS, ExportableDetector
from uveitis_assets.detection.exports.onnx_operators import OPSET, translations

INPUT = "tile"
# Protocol buffers end at 2 GiB; the graph beside the weights takes a few MB.
_LARGEST_WEIGHTS_BYTES = 2**31 - 2**26


class OnnxPackagesMissingError(ImportError):
    """ONNX's packages are not installed; the message says how to install them."""


def require_onnx_packages() -> None:
    """Import the packages of the extra ``onnx``.

    Raises:
        OnnxPackagesMissingError: one of them is not installed.
    """
    try:
        for name in ("onnx", "onnxruntime", "onnxscript"):
            import_module(name)
    except ModuleNotFoundError as error:
        raise OnnxPackagesMissingError(
            f"expected the package {error.name}, found none; install the extra: pip install 'uveitis-assets[onnx]'"
        ) from error


def onnx_bytes(model: nn.Module, facts: Mapping[str, str]) -> bytes:
    """The detector as an ONNX file.

    The input ``tile`` is float32 (1, 3, S, S), RGB 0..1, S the detector's input size; outputs are those of
    ``ExportableDetector``. File names, code and types of the exporting program are left out of the graph.

    Args:
        model: a detector of ``build_detector`` in evaluation mode, on the CPU.
        facts: names and values of ``metadata_props``.

    Raises:
        OnnxPackagesMissingError: a package is not installed.
        ValueError: the weights are larger than an ONNX file can be.
    """
    require_onnx_packages()
    onnx: Any = import_module("onnx")
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    if weights > _LARGEST_WEIGHTS_BYTES:
        raise ValueError(
            f"expected weights of at most {_LARGEST_WEIGHTS_BYTES / 2**30:.2f} GiB, which one ONNX file can hold, "
            f"found {weights / 2**30:.2f} GiB; take a smaller backbone"
        )
    exportable = ExportableDetector(model)
    example = torch.zeros(1, 3, exportable.input_size, exportable.input_size)
    with torch.inference_mode(False), torch.no_grad():
        names = OUTPUTS[: len(exportable(example))]
        with _quiet_exporter():
            program = torch.onnx.export(
                exportable,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(names),
                custom_translation_table=translations(),
                external_data=False,
                verbose=False,
            )
    assert program is not None
    written: Any = program.model_proto
    _strip(written)
    for output in written.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "detections"
    onnx.helper.set_model_props(written, dict(sorted(facts.items())))
    onnx.checker.check_model(written)
    serialized: bytes = written.SerializeToString(deterministic=True)
    return serialized


def _strip(model: Any) -> None:
    """Remove what the exporter notes about its run: stack traces with paths, code, names of types."""
    del model.metadata_props[:]
    model.doc_string = ""
    for function in model.functions:
        del function.metadata_props[:]
        function.doc_string = ""
        _strip_nodes(function.node)
    _strip_graph(model.graph)


def _strip_graph(graph: Any) -> None:
    del graph.metadata_props[:]
    graph.doc_string = ""
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        for value in values:
            value.doc_string = ""
            del value.metadata_props[:]
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Any) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            if attribute.HasField("g"):
                _strip_graph(attribute.g)
            for graph in attribute.graphs:
                _strip_graph(graph)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep back the exporter's advice to its developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
