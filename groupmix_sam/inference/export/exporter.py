"""From a Sam to a folder that `Predictor` and other programs run: models, `config.json` and `parity.json`."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam

from ... import __version__
from ...encoders.groupmixformer import GroupMixFormer
from ...errors import GroupMixSamError, InvalidInputError, SaveError
from ...files import sha256
from ...images import ImageFile
from ...preprocess import input_size
from ...weights import encoder_name
from ..backends.tensorrt import import_tensorrt
from ..exported_folder import FORMAT_VERSION
from ..model import torch_model
from ..predictor import Predictor
from .onnx import quantize, write_graphs
from .openvino import convert
from .parity import DEFAULTS, Thresholds, check_parity, measure_parity

__all__ = ["PRECISIONS", "export"]

PRECISIONS = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
    "tensorrt": ("fp32", "fp16", "int8"),
}
# Fewer do not show an encoder what it will see.
MIN_CALIBRATION = 8


def export(
    sam: Sam,
    folder: str | PathLike[str],
    images: Sequence[NDArray[np.uint8] | ImageFile],
    *,
    runtime: str = "onnx",
    precision: str = "fp32",
    dynamic_batch: bool = False,
    frame_size: tuple[int, int] | None = None,
    thresholds: Thresholds = DEFAULTS,
    calibration: Sequence[NDArray[np.uint8] | ImageFile] = (),
    timing_cache: Path | None = None,
    graphs: Path | None = None,
) -> dict[str, Any]:
    """Write a model for a runtime to a new folder; return the parity report. Nothing is written if the masks differ too much.

    Args:
        sam: A model built by `build_sam_groupmix`, on the CPU. Its image size is the exported model's.
        folder: To make; it appears whole or not at all.
        images: On which the masks are compared with those of the Sam in fp32: arrays, H x W x 3, uint8, RGB, or files,
            which are read one at a time.
        runtime: "onnx", "openvino" or "tensorrt", which needs the GPU that will run it.
        precision: One of `PRECISIONS[runtime]`: of the encoder, as the decoder stays in fp32. "fp16" in OpenVINO is of the
            file, "bf16" of the arithmetic.
        dynamic_batch: Whether the encoder takes several images at once.
        frame_size: Width and height of a camera's frames in pixels: only the part of the input that they fill is encoded, and
            images of other shapes are refused. By default the model takes any image, padded to a square.
        thresholds: What the masks' IoU must reach.
        calibration: Images for "int8", at least 8, and none of `images`.
        timing_cache: A file in which TensorRT keeps what it measured, for the next export.
        graphs: A folder in which `write_graphs` has written this Sam in the encoder's precision, which takes a minute or more:
            several exports can share it.

    Raises:
        InvalidInputError: the folder is there, or an argument cannot be used.
        MissingExtraError: a package for the runtime is missing.
        RuntimeUnavailableError: there is no GPU for TensorRT, or it refuses the model.
        ParityError: the masks differ too much from PyTorch's.
        SaveError: the folder cannot be written.
    """
    folder = Path(folder)
    _check(sam, folder, images, runtime, precision, calibration)
    if runtime == "tensorrt":
        import_tensorrt()  # before minutes of work
    exact = Predictor(replace(torch_model(sam), input_size=_input_size(sam, frame_size)))
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir()
        if graphs is None:
            in_graph = precision == "fp16" and runtime != "openvino"
            write_graphs(sam, part, torch.float16 if in_graph else torch.float32, dynamic_batch, exact.model.input_size)
        else:
            for path in graphs.glob("*.onnx"):
                shutil.copy(path, part)
        # In INT8, GroupMixFormer's depthwise convolutions cost its masks most, and nearly all its work is products.
        products_only = isinstance(sam.image_encoder, GroupMixFormer)
        _convert(part, runtime, precision, _Inputs(exact, calibration), products_only, timing_cache)
        config = _config(part, sam, exact, runtime, precision, dynamic_batch)
        _write_json(part / "config.json", config)
        report = measure_parity(exact, Predictor.from_pretrained(part), map(_decode, images), thresholds.pred_iou_thresh)
        check_parity(report, thresholds)
        _write_json(part / "parity.json", report)
        _write_json(part / "config.json", {**config, "parity": {k: v for k, v in report.items() if k != "each"}})
        os.replace(part, folder)
    except GroupMixSamError:
        raise
    except OSError as e:
        raise SaveError(f"{folder} cannot be written ({e}): check its rights and the space that is left.") from e
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return report


def _input_size(sam: Sam, frame_size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the height and width of the encoder's input."""
    side = int(cast(Any, sam.image_encoder).img_size)
    if frame_size is None:
        return side, side
    if len(frame_size) != 2 or min(frame_size) < 1:
        raise InvalidInputError(f"frame_size is {frame_size}: give a width and a height in pixels, such as 1280 and 720.")
    if not isinstance(sam.image_encoder, GroupMixFormer):
        raise InvalidInputError(f"a {type(sam.image_encoder).__name__} takes a square alone: leave out frame_size.")
    return input_size((frame_size[1], frame_size[0]), side)


class _Inputs(Sequence[Any]):
    """The encoder's inputs for images, 1 x 3 x S x S, computed when they are asked for: all of them may not fit in memory."""

    def __init__(self, predictor: Predictor, images: Sequence[NDArray[np.uint8] | ImageFile]) -> None:
        self.predictor = predictor
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: Any) -> Any:
        return self.predictor.preprocess(_decode(self.images[i]))[None]


def _decode(image: NDArray[np.uint8] | ImageFile) -> NDArray[np.uint8]:
    return image.decode() if isinstance(image, ImageFile) else image


def _check(
    sam: Sam,
    folder: Path,
    images: Sequence[Any],
    runtime: str,
    precision: str,
    calibration: Sequence[Any],
) -> None:
    if runtime not in PRECISIONS or precision not in PRECISIONS[runtime]:
        known = "; ".join(f"{name} with {', '.join(kinds)}" for name, kinds in PRECISIONS.items())
        raise InvalidInputError(f"there is no {precision!r} for {runtime!r}: use {known}.")
    if sam.device.type != "cpu":
        raise InvalidInputError(f"the Sam is on {sam.device}: export it from the CPU, with sam.cpu().")
    if folder.exists():
        raise InvalidInputError(f"{folder} is there already: give a new folder, or remove it.")
    if not folder.parent.is_dir():
        raise InvalidInputError(f"there is no folder {folder.parent}: make it first.")
    if not len(images):
        raise InvalidInputError("there is no image to compare masks on: give one or more.")
    if precision == "int8" and len(calibration) < MIN_CALIBRATION:
        raise InvalidInputError(f"{len(calibration)} images are too few to calibrate on: give {MIN_CALIBRATION} or more.")


def _convert(
    part: Path,
    runtime: str,
    precision: str,
    inputs: Sequence[NDArray[np.float32]],
    products_only: bool,
    timing_cache: Path | None,
) -> None:
    """Make the runtime's models of a folder's graphs, in their place."""
    if runtime == "openvino":
        convert(part, precision, inputs, products_only)
        return
    if precision == "int8":
        quantize(part / "encoder.onnx", inputs, products_only, symmetric=runtime == "tensorrt")
    if runtime == "tensorrt":
        from .tensorrt import build_plans

        build_plans(part, timing_cache)


def _config(part: Path, sam: Sam, exact: Predictor, runtime: str, precision: str, dynamic_batch: bool) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "library": f"groupmix-sam {__version__}",
        "architecture": encoder_name(sam),
        "runtime": runtime,
        "precision": precision,
        "image_size": exact.image_size,
        "input_size": exact.model.input_size,
        "embed_stride": exact.model.embed_stride,
        "mean": exact.model.mean.tolist(),
        "std": exact.model.std.tolist(),
        "mask_threshold": exact.mask_threshold,
        "dynamic_batch": dynamic_batch,
        "model_hash": exact.model_hash,
        "files": {path.name: sha256(path) for path in sorted(part.iterdir())},
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
