"""ONNX files of the mini face pack, in the layout that insightface's loader expects."""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from feedface.common.files import atomic_file

OPSET = 17
SMALL = 256  # tensors of up to this many numbers (biases) stay in float32


def export_onnx(module: nn.Module, example: Tensor, path: Path, output_names: list[str]) -> None:
    """Write `module` as an ONNX file whose input is fixed to the example's shape.

    Inputs, outputs and arithmetic are float32; the large weights are stored as float16, at half the size.
    """
    import onnx

    module = module.cpu().eval()
    buffer = io.BytesIO()
    # The exporter of dynamo=True needs onnxscript, which is one more dependency; this one is only deprecated.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (example.cpu(),), buffer, dynamo=False, opset_version=OPSET,
            input_names=["image"], output_names=output_names,
        )  # fmt: skip
    model = onnx.load_from_string(buffer.getvalue())
    _store_weights_in_half(model)
    onnx.checker.check_model(model)
    with atomic_file(path) as temporary:
        onnx.save(model, str(temporary))


def _store_weights_in_half(model) -> None:
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.size > SMALL:
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name + ".half"))
            casts.append(helper.make_node("Cast", [name + ".half"], [name], name="half_" + name, to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
