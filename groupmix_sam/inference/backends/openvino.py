"""OpenVINO as a backend."""

import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...encoders.config import STRIDE
from ...errors import InvalidInputError, RuntimeUnavailableError, import_extra
from .base import AnySize, Positions, cell_terms, input_refused

__all__ = ["OpenvinoBackend", "openvino_core"]

# Shapes of inputs after which a model is compiled anew, which takes a third of a second. For each shape the decoder keeps 4 MB
# for good. Without OpenVINO's cache that is 3 MB, and release_memory() frees none of it. oneDNN's cache, of 150 MB, is bounded.
MOST_SHAPES = 32


class OpenvinoBackend(AnySize):
    """An OpenVINO IR, or an ONNX file, in OpenVINO.

    Args:
        path: The `.xml` or `.onnx` file.
        device: "CPU", "GPU" or another of OpenVINO's devices.
        precision: "f32" or "bf16": OpenVINO would choose by the processor. Where bf16 has no instructions a warning says so.
        threads: None leaves them to OpenVINO.
        change: What makes another model of the file's.

    Raises:
        MissingExtraError: there is no openvino.
        RuntimeUnavailableError: the device is not there, or the file cannot be read.
        InvalidInputError: of `change`.
    """

    def __init__(
        self,
        path: Path,
        device: str = "CPU",
        precision: str = "f32",
        threads: int | None = None,
        change: Callable[[Any], None] | None = None,
    ) -> None:
        super().__init__(partial(OpenvinoBackend, path, device, precision, threads), _any_window, _any_part)
        self.device = torch.device("cpu")
        self._lock = Lock()
        core = openvino_core()
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        if threads is not None:
            # Unpinned: several processes of one thread each would all be pinned to the first core.
            settings |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        self._shapes: set[tuple[torch.Size, ...]] = set()
        try:
            source: Any = str(path)
            if change is not None:
                source = core.read_model(str(path))
                change(source)
            self._compile = partial(core.compile_model, source, device, settings)
            self.model = self._compile()
        except RuntimeError as e:
            raise RuntimeUnavailableError(
                f"OpenVINO does not load {path} on {device} ({e}): its devices are {', '.join(core.available_devices)}; "
                "check the name, or export again."
            ) from e
        if precision == "bf16" and "BF16" not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
            warnings.warn(
                f"this {device} has no instructions for bf16, and emulating them is slower than fp32: export in fp32 or int8.",
                stacklevel=2,
            )

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        arrays = [x.cpu().contiguous().numpy() for x in inputs]
        shapes = tuple(x.shape for x in inputs)
        # The model has one infer request, and a thread would get the answer to another's inputs. Requests for each thread
        # would keep buffers of hundreds of MB, and two at once are no faster: they share the cores.
        try:
            # The decoder's inputs are 10 MB, which would be copied for each prompt. Outputs are, as the next call reuses them.
            with self._lock:
                if shapes not in self._shapes and len(self._shapes) >= MOST_SHAPES:
                    del self.model  # before the next takes as much
                    self.model = self._compile()
                    self._shapes.clear()
                self._shapes.add(shapes)
                return [torch.from_numpy(x) for x in self.model(arrays, share_inputs=True).values()]
        except RuntimeError as e:
            raise input_refused(inputs, e) from e


@cache
def openvino_core() -> Any:
    """Return the process's one core.

    Each that has loaded the CPU plugin gives the thread another alternate signal stack, and puts back the one before when it
    goes. Of several that go in the order in which they came, the last one puts back memory that is freed, and the next signal
    with a handler in Python, as when a DataLoader's worker ends, kills the process.
    """
    return import_extra("openvino", "openvino").Core()


def _any_window(model: Any) -> None:
    """Make of an encoder one that takes an image of any height and width, of which its export made constants.

    These are the shapes of reshapes between tokens as a list, B x N x C, and as a grid, B x rows x columns x C.
    """
    ov = import_extra("openvino", "openvino")
    pixels = model.get_parameters()[0]
    try:
        height, width = (pixels.get_partial_shape()[i].get_length() for i in (2, 3))
        pixels.set_partial_shape(ov.PartialShape([1, 3, height, width]))
        model.validate_nodes_and_infer_types()
        rows, columns, terms = height // STRIDE, width // STRIDE, {}
        for node in model.get_ops():
            before, shape = (
                ([], []) if node.get_type_name() != "Reshape" else (node.get_input_shape(0), node.get_output_shape(0))
            )
            if (len(before), len(shape)) == (3, 4):
                sides = [0, shape[1] // rows, 0, 0], [0, 0, shape[2] // columns, 0]
                terms[node.input_value(1)] = [[1, 0, 0, 0], *sides, [shape[3], 0, 0, 0]]
            elif (len(before), len(shape)) == (4, 3):
                terms[node.input_value(1)] = [[1, 0, 0, 0], [-1, 0, 0, 0], [shape[2], 0, 0, 0]]
        _free(model, 2, STRIDE, terms)
        if model.outputs[0].get_partial_shape()[2].is_static:
            raise RuntimeError("what it gives is of one size")
    except RuntimeError as e:
        raise InvalidInputError(
            f"this encoder takes one size, and no window ({e}): give the export of a GroupMixFormer."
        ) from e


def _any_part(model: Any, positions: Positions) -> None:
    """Make of `image`, `masks` or `decoder` one for any part of the grid, of which its export made constants.

    Args:
        model: The whole grid's.
        positions: Where to put what the cells' positions add, constants of all cells, which become further inputs.
    """
    opset: Any = import_extra("openvino.opset13", "openvino")
    first = model.get_parameters()[0]
    name, shape = first.get_friendly_name(), list(first.get_partial_shape().to_shape())
    axis = 1 if name == "tokens" else 2
    rows, columns = shape[axis : axis + 2]
    cells, terms = rows * columns, {}
    added = []
    for node in model.get_ops():
        if node.get_type_name() != "Constant":
            continue
        shape, data = list(node.get_output_shape(0)), node.data
        if data.dtype in (np.float32, np.float16) and cells in shape:
            place = shape.index(cells)
            positions.append((place, torch.from_numpy(data.astype(np.float32)).unflatten(place, (rows, columns))))
            added.append(opset.parameter([-1 if i == place else side for i, side in enumerate(shape)], np.float32))
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(added[-1].output(0))
        elif data.dtype == np.int64 and len(shape) == 1:
            sides = cell_terms(data.tolist(), rows, columns)
            if sides is not None:
                terms[node.output(0)] = sides
    model.add_parameters(added)
    _free(model, axis, 4 if name == "masks" else 1, terms)


def _free(model: Any, axis: int, unit: int, terms: dict[Any, list[list[int]]]) -> None:
    """Free the sizes of a model, and compute its constant shapes from that of the first input.

    Args:
        model: Changed in place.
        axis: Of the first input, for rows; columns are in the next one.
        unit: What of the first input is a row or a column.
        terms: By the output of a constant, for each of its sides: a number, and how many to add for each row, column and cell.
    """
    ops, ov = import_extra("openvino.opset13", "openvino"), import_extra("openvino", "openvino")

    def constant(values: Any) -> Any:
        return ops.constant(np.array(values, np.int64))

    pixels = ops.gather(ops.shape_of(model.get_parameters()[0]), constant([axis, axis + 1]), constant(0))
    sides = ops.divide(pixels, constant(unit))
    counts = ops.concat([constant([1]), sides, ops.reduce_prod(sides, constant(0), True)], 0)
    for output, values in terms.items():
        shape = ops.reduce_sum(ops.multiply(constant(values), counts), constant(1))
        for target in output.get_target_inputs():
            target.replace_source_output(shape.output(0))
    for parameter in model.get_parameters():
        parameter.set_partial_shape(ov.PartialShape([-1] * len(parameter.get_partial_shape())))
    model.validate_nodes_and_infer_types()
