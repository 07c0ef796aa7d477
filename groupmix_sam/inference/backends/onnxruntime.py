"""ONNX Runtime as a backend."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ...encoders.config import STRIDE
from ...errors import InvalidInputError, RuntimeUnavailableError, import_extra
from .base import AnySize, Positions, cell_terms, input_refused

__all__ = ["OnnxBackend"]

# Those that have their tensors in the memory of NVIDIA's GPUs, as PyTorch has.
ON_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")


class OnnxBackend(AnySize):
    """An ONNX file in ONNX Runtime.

    Tensors are bound where they lie: with NVIDIA's providers results stay on the GPU, if PyTorch has CUDA too.

    Args:
        path: The file.
        providers: ONNX Runtime's execution providers, the best first; every one of them must load.
        device_id: Which of several GPUs.
        threads: For one operation; None leaves it to ONNX Runtime.
        change: What makes another model of the file's.

    Raises:
        MissingExtraError: there is no onnxruntime, or for `change` no onnx.
        RuntimeUnavailableError: a provider is not there or did not load, or the file cannot be read.
        InvalidInputError: of `change`.
    """

    def __init__(
        self,
        path: Path,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        device_id: int = 0,
        threads: int | None = None,
        change: Callable[[Any], None] | None = None,
    ) -> None:
        super().__init__(partial(OnnxBackend, path, providers, device_id, threads), _any_window, _any_part)
        ort = import_extra("onnxruntime", "onnx")
        known = ort.get_available_providers()
        missing = [name for name in providers if name not in known]
        if missing:
            raise RuntimeUnavailableError(
                f"this onnxruntime has no {', '.join(missing)}, only {', '.join(known)}: "
                "install onnxruntime-gpu for NVIDIA's, or ask for one of these."
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Each model has threads of its own. After a run they would spin, waiting for the next, on the cores that another needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        settings = [{"device_id": str(device_id)} if device_id else {} for _ in providers]
        source: str | bytes = str(path)
        if change is not None:
            model = import_extra("onnx", "onnx").load(path)
            change(model)
            source = model.SerializeToString()
        try:
            self.session = ort.InferenceSession(source, options, providers=list(providers), provider_options=settings)
        except Exception as e:  # ONNX Runtime's errors have no base of their own
            raise RuntimeUnavailableError(f"ONNX Runtime does not load {path} ({e}): export it again.") from e
        # Providers that are listed but find no device are dropped without an error.
        lost = [name for name in providers if name not in self.session.get_providers()]
        if lost:
            raise RuntimeUnavailableError(
                f"{', '.join(lost)} did not load, and ONNX Runtime would run on {self.session.get_providers()[0]} instead: "
                "check the driver and its libraries, or ask for that provider."
            )
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        on_cuda = providers[0] in ON_CUDA and torch.cuda.is_available()
        self.device = torch.device("cuda", device_id) if on_cuda else torch.device("cpu")

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        # Kept until the run is over: a binding knows addresses alone.
        tensors = [x.to(self.device, torch.float32).contiguous() for x in inputs]
        place = self.device.type, self.device.index or 0
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # ONNX Runtime has streams of its own
        binding = self.session.io_binding()
        try:
            for name, x in zip(self.inputs, tensors, strict=True):
                binding.bind_input(name, *place, np.float32, tuple(x.shape), x.data_ptr())
            for name in self.outputs:
                binding.bind_output(name, *place)
            self.session.run_with_iobinding(binding)
        except Exception as e:
            raise input_refused(inputs, e) from e
        binding.synchronize_outputs()
        # Only the inner class of every version of ONNX Runtime gives a tensor away.
        return [from_dlpack(value._ortvalue) for value in binding.get_outputs()]


def _any_window(model: Any) -> None:
    """Make of an encoder one that takes images of any height and width, of which its export made constants.

    These are the shapes of reshapes between tokens as a list, B x N x C, and as a grid, B x rows x columns x C.
    """
    graph, to_array = model.graph, import_extra("onnx.numpy_helper", "onnx").to_array
    dims = graph.input[0].type.tensor_type.shape.dim
    reshapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    shapes = {tensor.name: to_array(tensor) for tensor in graph.initializer if tensor.name in reshapes}
    fixed = any(node.op_type == "Resize" and len(node.input) > 3 for node in graph.node)
    if len(dims) != 4 or fixed or shapes.keys() != reshapes or not {len(shape) for shape in shapes.values()} <= {3, 4}:
        raise InvalidInputError("this encoder takes one size, and no window: give the export of a GroupMixFormer.")
    rows, columns = (dim.dim_value // STRIDE for dim in dims[2:])
    terms = {}
    for name, shape in shapes.items():
        terms[name] = [[side, 0, 0, 0] for side in shape]
        if len(shape) == 4:
            terms[name][1:3] = [0, shape[1] // rows, 0, 0], [0, 0, shape[2] // columns, 0]
        else:
            terms[name][1] = [0, 0, 0, shape[1] // (rows * columns)]
    _free(graph, 2, STRIDE, terms)


def _any_part(model: Any, positions: Positions) -> None:
    """Make of `image`, `masks` or `decoder` one for any part of the grid, of which its export made constants.

    Args:
        model: The whole grid's.
        positions: Where to put what the cells' positions add, constants of all cells, which become further inputs.
    """
    onnx: Any = import_extra("onnx", "onnx")
    graph = model.graph
    axis = 1 if graph.input[0].name == "tokens" else 2
    rows, columns = (dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim[axis : axis + 2])
    cells, terms = rows * columns, {}
    for tensor in list(graph.initializer):
        data = onnx.numpy_helper.to_array(tensor)
        if data.dtype == np.float32 and cells in data.shape:
            place = data.shape.index(cells)
            positions.append((place, torch.from_numpy(data.copy()).unflatten(place, (rows, columns))))
            graph.initializer.remove(tensor)
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, data.shape))
        elif data.dtype == np.int64 and data.ndim == 1:
            sides = cell_terms(data.tolist(), rows, columns)
            if sides is not None:
                terms[tensor.name] = sides
    _free(graph, axis, 4 if graph.input[0].name == "masks" else 1, terms)


def _free(graph: Any, axis: int, unit: int, terms: dict[str, list[list[int]]]) -> None:
    """Free the sizes of a graph, and compute its constant shapes from that of the first input.

    Args:
        graph: Changed in place.
        axis: Of the first input, for rows; columns are in the next one.
        unit: What of the first input is a row or a column.
        terms: By the name of a constant, for each of its sides: a number, and how many to add for each row, column and cell.
    """
    onnx: Any = import_extra("onnx", "onnx")
    make = onnx.helper.make_node

    def constant(name: str, values: Any) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), f"free_{name}"))
        return f"free_{name}"

    nodes = [
        make("Shape", [graph.input[0].name], ["free_pixels"], start=axis, end=axis + 2),
        make("Div", ["free_pixels", constant("unit", unit)], ["free_sides"]),
        make("ReduceProd", ["free_sides"], ["free_cells"]),
        make("Concat", [constant("one", [1]), "free_sides", "free_cells"], ["free_counts"], axis=0),
    ]
    axes = constant("axes", [1])
    for name, sides in terms.items():
        nodes += [
            make("Mul", [constant(f"terms_{name}", sides), "free_counts"], [f"free_products_{name}"]),
            make("ReduceSum", [f"free_products_{name}", axes], [name], keepdims=0),
        ]
    for tensor in list(graph.initializer):
        if tensor.name in terms:
            graph.initializer.remove(tensor)
    nodes += graph.node
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
