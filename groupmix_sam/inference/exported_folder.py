"""The folder that `groupmix-sam export` writes: its format, its checks, its models."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..devices import find_threads
from ..encoders.config import STRIDE, check_embed_stride, check_img_size
from ..errors import InvalidInputError, WeightsError, WeightsNotFoundError
from ..files import sha256
from .backends import Backend, OnnxBackend, OpenvinoBackend, TensorrtBackend
from .backends.base import CHANNELS
from .model import InferenceModel, in_place

__all__ = ["FORMAT_VERSION", "PARTS", "SINGLE_MASK", "SUFFIXES", "crop_parts", "folder_model", "read_config"]

FORMAT_VERSION = 1
# Rows and columns of the grid that a decoder takes come in steps of this: OpenVINO keeps memory for each size that it has met.
CROP_STEP = 8
PARTS = ("encoder", "masks", "image", "decoder")
SINGLE_MASK = "single_mask"  # a decoder that is faster for one mask; a folder for a web page has none
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "tensorrt": ".plan"}


# ONNX Runtime's execution providers by the names of PyTorch's devices.
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def folder_model(folder: Path, device: str | None = None, threads: int | None = None) -> InferenceModel:
    """Return the model of an exported folder, in the runtime that it was exported for.

    Args:
        folder: What `groupmix-sam export` wrote.
        device: None or "auto" is the CPU, or TensorRT's GPU. Of ONNX Runtime: "cpu", "cuda", "cuda:1", or execution providers,
            such as "DmlExecutionProvider", with commas between, all of which must load. Of OpenVINO: "CPU", "GPU" or another
            that it knows. Of TensorRT: "cuda".
        threads: Of ONNX Runtime and OpenVINO on the CPU, see `find_threads`.

    Raises:
        InvalidInputError: an option is of another runtime.
        WeightsNotFoundError: there is no such folder, or a file of it is missing.
        WeightsError: the folder is damaged or of another version.
        RuntimeUnavailableError: a runtime, provider or device is missing.
    """
    config = read_config(folder)
    runtime = config["runtime"]
    if device is None or device == "auto":
        device = "cuda" if runtime == "tensorrt" else "cpu"
    if runtime == "tensorrt" and device != "cuda":
        raise InvalidInputError(f"the device is {device!r} and {folder} is for TensorRT: use 'cuda'.")
    threads = find_threads(threads)
    kind, _, number = device.partition(":")
    providers = [PROVIDERS.get(name, name) for name in kind.split(",")]
    known = all(name.endswith("ExecutionProvider") for name in providers) and (number or "0").isdecimal()
    if runtime == "onnx" and not known:
        raise InvalidInputError(
            f"the device is {device!r} and {folder} is for ONNX Runtime: use 'cpu' or 'cuda', or name an execution provider."
        )

    def load(part: str) -> Backend:
        path = folder / f"{part}{SUFFIXES[runtime]}"
        if runtime == "onnx":
            return OnnxBackend(path, providers, int(number or 0), threads)
        if runtime == "openvino":
            precision = "bf16" if config["precision"] == "bf16" and part == "encoder" else "f32"
            return OpenvinoBackend(path, device.upper(), precision, threads)
        return TensorrtBackend(path)

    masks, image, decoder = parts = load("masks"), load("image"), load("decoder")
    crop = None
    rows, columns = (side // config["embed_stride"] for side in config["input_size"])
    of_any_size = [part for part in parts if isinstance(part, OnnxBackend | OpenvinoBackend)]
    if of_any_size and rows * columns not in CHANNELS:
        crop = partial(crop_parts, of_any_size, (rows, columns))
    return InferenceModel(
        encoder=load("encoder"),
        masks=masks,
        image=image,
        decoder=decoder,
        image_size=config["image_size"],
        input_size=tuple(config["input_size"]),
        embed_stride=config["embed_stride"],
        mean=np.array(config["mean"], dtype=np.float32),
        std=np.array(config["std"], dtype=np.float32),
        mask_threshold=config["mask_threshold"],
        dynamic_batch=config["dynamic_batch"],
        model_hash=config["model_hash"],
        crop=crop,
        crop_step=CROP_STEP,
        single_mask=load(SINGLE_MASK) if f"{SINGLE_MASK}{SUFFIXES[runtime]}" in config["files"] else None,
    )


def crop_parts(
    parts: Sequence[OnnxBackend | OpenvinoBackend], grid: tuple[int, int], rows: slice, columns: slice
) -> tuple[Backend, Backend, Backend]:
    """Return `masks`, `image` and `decoder` that see some rows and columns of the grid alone, as `InferenceModel.crop` does."""
    masks, image, decoder = (part.for_part(rows, columns) for part in parts)
    return in_place(masks, image, decoder, parts[0].device, grid, rows, columns)


def read_config(folder: Path) -> dict[str, Any]:
    """Return an exported folder's config, with every file of the folder checked against it."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        runtime, version, files = config["runtime"], config["format_version"], config["files"]
        if version == FORMAT_VERSION and runtime in SUFFIXES:
            _check_config(config)
    except (FileNotFoundError, NotADirectoryError) as e:
        raise WeightsNotFoundError(f"there is no {path}: give a folder that `groupmix-sam export` wrote.") from e
    except (OSError, OverflowError, RecursionError, ValueError, KeyError, TypeError) as e:
        raise WeightsError(f"{path} is no config of an exported folder ({e!r}): export it again.") from e
    if version != FORMAT_VERSION or runtime not in SUFFIXES:
        raise WeightsError(
            f"{path} is of format {version!r} for {runtime!r}, which this version does not read: export it again."
        )
    for name, digest in files.items():
        if not (folder / name).is_file():
            raise WeightsNotFoundError(f"{folder} lacks {name}: copy the whole folder, or export it again.")
        if sha256(folder / name) != digest:
            raise WeightsError(f"{folder / name} is damaged or was changed, its sha256 is not {digest}: export it again.")
    return dict(config)


def _check_config(config: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError for a value that a Predictor could not use."""
    check_img_size(config["image_size"])
    height, width = config["input_size"]
    if max(height, width) != config["image_size"] or min(height, width) < STRIDE or height % STRIDE or width % STRIDE:
        raise ValueError("input_size")
    check_embed_stride(config["embed_stride"])
    numbers = np.array([*config["mean"], *config["std"], config["mask_threshold"]], dtype=np.float64)
    if len(config["mean"]) != 3 or numbers.shape != (7,) or not np.isfinite(numbers).all() or (numbers[3:6] <= 0).any():
        raise ValueError("mean, std or mask_threshold")
    if not isinstance(config["dynamic_batch"], bool) or not all(
        isinstance(config[k], str) for k in ("precision", "model_hash")
    ):
        raise ValueError("dynamic_batch, precision or model_hash")
    lacking = {f"{part}{SUFFIXES[config['runtime']]}" for part in PARTS}.difference(config["files"])
    if lacking or not isinstance(config["files"], dict) or not all(Path(name).name == name for name in config["files"]):
        raise ValueError("files")
