"""OpenVINO as a backend."""

import warnings
from collections.abc import Callable
from functools import cache, lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidInputError, RuntimeUnavailableError, import_extra
from .base import MOST_WINDOWS, input_refused

__all__ = ["CHANNELS", "OpenvinoBackend", "openvino_core"]

# Shapes of inputs after which a model is compiled anew, which takes a third of a second. For each shape the decoder keeps 4 MB
# for good. Without OpenVINO's cache that is 3 MB, and release_memory() frees none of it. oneDNN's cache, of 150 MB, is bounded.
MOST_SHAPES = 32
# Sides of the decoder's tensors, its channels for the most part, which `for_part` takes for no number of cells.
CHANNELS = (4, 8, 16, 32, 64, 128, 256)
# What the cells' positions add, with the axis of the cells, which is split in rows and columns.
Positions = list[tuple[int, Tensor]]
# Parts of the grid that a decoder is kept compiled for, some 50 MB each.
MOST_PARTS = 8


class OpenvinoBackend:
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
        change: Callable[[Any], Any] | None = None,
    ) -> None:
        given = path, device, precision, threads
        self._load_window = lru_cache(MOST_WINDOWS)(lambda size: OpenvinoBackend(*given, change=partial(_resized, size=size)))
        self._load_part = lru_cache(MOST_PARTS)(partial(_load_part, *given))
        self.device = torch.device("cpu")
        self._lock = Lock()
        core = openvino_core()
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        if threads is not None:
            # Unpinned: several processes of one thread each would all be pinned to the first core.
            settings |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        self._shapes: set[tuple[torch.Size, ...]] = set()
        try:
            source = str(path) if change is None else change(core.read_model(str(path)))
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

    def for_window(self, height: int, width: int) -> "OpenvinoBackend":
        """Return the encoder for windows of that size, multiples of 16; it is compiled when it is first asked for."""
        return self._load_window((height, width))

    def for_part(self, rows: slice, columns: slice) -> Callable[..., list[Tensor]]:
        """Return `image` or `decoder` for these rows and columns of the grid alone.

        It is compiled for each number of rows and columns, and the last few are kept.
        """
        size = rows.stop - rows.start, columns.stop - columns.start
        part, positions = self._load_part(size)
        here = [
            whole.narrow(axis, rows.start, size[0]).narrow(axis + 1, columns.start, size[1]).flatten(axis, axis + 1)
            for axis, whole in positions
        ]
        return lambda *inputs: part(*inputs, *here)

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


def _resized(model: Any, size: tuple[int, int]) -> Any:
    """Return an encoder that takes images of another height and width, of which its export made constants.

    These are the shapes of reshapes between tokens as a list, B x N x C, and as a grid, B x rows x columns x C.
    """
    opset, ov = import_extra("openvino.opset13", "openvino"), import_extra("openvino", "openvino")
    pixels = model.get_parameters()[0]
    try:
        height, width = (pixels.get_partial_shape()[i].get_length() for i in (2, 3))
        # `model.reshape` would first check the new constants with the old size.
        pixels.set_partial_shape(ov.PartialShape([1, 3, height, width]))
        model.validate_nodes_and_infer_types()
        for node in model.get_ops():
            if node.get_type_name() == "Reshape":
                before, shape = list(node.get_input_shape(0)), list(node.get_output_shape(0))
                if (len(before), len(shape)) == (3, 4):
                    shape[1:3] = shape[1] * size[0] // height, shape[2] * size[1] // width
                elif (len(before), len(shape)) == (4, 3):
                    shape[1] = -1
                else:
                    continue
                node.input(1).replace_source_output(opset.constant(np.array(shape, np.int64)).output(0))
        pixels.set_partial_shape(ov.PartialShape([1, 3, *size]))
        model.validate_nodes_and_infer_types()
    except RuntimeError as e:
        raise InvalidInputError(
            f"this encoder takes one size, and no window ({e}): give the export of a GroupMixFormer."
        ) from e
    return model


def _load_part(
    path: Path, device: str, precision: str, threads: int | None, size: tuple[int, int]
) -> tuple[OpenvinoBackend, Positions]:
    """Return `image` or `decoder` for so many rows and columns of the grid, and what its further inputs are cut from."""
    positions: Positions = []
    return OpenvinoBackend(path, device, precision, threads, partial(_cropped, size=size, positions=positions)), positions


def _replace(node: Any, other: Any) -> None:
    for target in node.output(0).get_target_inputs():
        target.replace_source_output(other.output(0))


def _cropped(model: Any, size: tuple[int, int], positions: Positions) -> Any:
    """Return `image` or `decoder` for a part of the grid, of which its export made constants.

    What the cells' positions add, constants of all cells, become further inputs.

    Args:
        model: The whole grid's.
        size: Rows and columns of the part.
        positions: Where to put those constants.
    """
    opset, ov = import_extra("openvino.opset13", "openvino"), import_extra("openvino", "openvino")
    old = model.get_parameters()
    shape = list(old[0].get_partial_shape().to_shape())
    rows, columns = shape[2:] if old[0].get_friendly_name() == "features" else shape[1:3]
    cells, wanted = rows * columns, size[0] * size[1]
    sizes = {cells: wanted, 16 * cells: 16 * wanted}
    added = []
    for node in model.get_ops():
        if node.get_type_name() != "Constant":
            continue
        shape, data = list(node.get_output_shape(0)), node.data
        if data.dtype in (np.float32, np.float16) and cells in shape:
            axis = shape.index(cells)
            positions.append((axis, torch.from_numpy(data.astype(np.float32)).unflatten(axis, (rows, columns))))
            added.append(opset.parameter([sizes.get(side, side) for side in shape], np.float32))
            _replace(node, added[-1])
        elif data.dtype == np.int64 and len(shape) == 1:
            values = [sizes.get(value, value) for value in data.tolist()]
            if len(values) == 8 and values[2:4] == [rows, columns]:
                values[2:4] = size
            elif values == [-1, 4, 4 * rows, 4 * columns]:
                values[2:4] = 4 * size[0], 4 * size[1]
            if values != data.tolist():
                _replace(node, opset.constant(np.array(values, np.int64)))
    for parameter in old:
        sides = [side.get_length() if side.is_static else -1 for side in parameter.get_partial_shape()]
        sides = [sizes.get(side, side) for side in sides]
        for axis in range(1, 3):
            if sides[axis : axis + 2] == [rows, columns]:
                sides[axis : axis + 2] = size
        parameter.set_partial_shape(ov.PartialShape(sides))
    model.add_parameters(added)
    model.validate_nodes_and_infer_types()
    return model
