"""ONNX graphs to TensorRT plans, of TensorRT 10 and 11 by one path. It has never run on a GPU: see docs/how/export.md.

Networks are strongly typed, as TensorRT 11 has no others: precisions are those of the graph, in which the encoder may be fp16
with its softmax over the tokens in fp32, or have convolutions in INT8 by symmetric Q/DQ.
"""

from pathlib import Path
from typing import Any

import onnx

from ...errors import RuntimeUnavailableError
from ...files import write_beside
from ..backends.tensorrt import import_tensorrt

__all__ = ["build_plans", "lint"]

# Least, usual and largest of what is free in a graph; a plan refuses more.
FREE = {"batch": (1, 1, 8), "prompts": (1, 1, 64), "points": (1, 2, 16), "rows": (1, 36, 64), "columns": (1, 64, 64)}


def build_plans(folder: Path, timing_cache: Path | None = None) -> None:
    """Turn every `.onnx` of a folder into a `.plan` for this machine's GPU.

    Args:
        folder: Where the graphs are.
        timing_cache: A file that keeps what TensorRT measured, so that the next build is quick; made if need be.

    Raises:
        MissingExtraError: there is no tensorrt.
        RuntimeUnavailableError: there is no driver or GPU, or TensorRT refuses a graph.
        SaveError: the timing cache cannot be written.
    """
    trt = import_tensorrt()
    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    cached = timing_cache.read_bytes() if timing_cache is not None and timing_cache.is_file() else b""
    for path in sorted(folder.glob("*.onnx")):
        if faults := lint(path):
            raise RuntimeUnavailableError(f"TensorRT would refuse {path.name}: {'; '.join(faults)}. Please report this.")
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, trt.Logger(trt.Logger.WARNING))
        if not parser.parse_from_file(str(path)):
            why = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise RuntimeUnavailableError(f"TensorRT {trt.__version__} does not parse {path.name}: {why}")
        config = builder.create_builder_config()
        cache = config.create_timing_cache(cached)
        config.set_timing_cache(cache, False)
        profile = builder.create_optimization_profile()
        for name, sizes in _inputs(path).items():
            profile.set_shape(name, *(tuple(FREE[s][i] if isinstance(s, str) else s for s in sizes) for i in range(3)))
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise RuntimeUnavailableError(f"TensorRT {trt.__version__} builds no plan from {path.name}: its log says why.")
        path.with_suffix(".plan").write_bytes(plan)
        path.unlink()
        cached = bytes(config.get_timing_cache().serialize())
    if timing_cache is not None:
        write_beside(timing_cache, lambda part: part.write_bytes(cached))


def lint(path: Path) -> list[str]:
    """Return what TensorRT is known to refuse or to get wrong in an ONNX file."""
    model = onnx.load(path)
    graph = model.graph
    faults = []
    if model.opset_import[0].version < 17:
        faults.append(f"opset {model.opset_import[0].version} has no LayerNormalization")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    inputs = {value.name for value in graph.input}
    for node in graph.node:
        if node.op_type == "OneHot":
            faults.append(f"{node.name}: OneHot, which repeat_interleave becomes")
        if node.op_type in {"Resize", "Reshape", "Expand", "Tile"} and inputs & set(node.input[1:]):
            faults.append(f"{node.name}: a shape that is an input of the graph")
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            if len(node.input) > 2 and constants.get(node.input[2], _ZERO).any():
                faults.append(f"{node.name}: a zero point that is not 0")
            if node.op_type == "DequantizeLinear" and constants.get(node.input[0], _ZERO).dtype.name == "int32":
                faults.append(f"{node.name}: an int32 bias")
    return faults


_ZERO: Any = onnx.numpy_helper.to_array(onnx.helper.make_tensor("zero", onnx.TensorProto.INT8, [1], [0]))


def _inputs(path: Path) -> dict[str, list[int | str]]:
    """Return the sizes of a graph's inputs: numbers, and the names of those that are free."""
    graph = onnx.load(path, load_external_data=False).graph
    return {value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.input}
