"""The folder that `groupmix-sam export` writes: its format, its checks, its models."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..encoders.config import check_img_size
from ..errors import WeightsError, WeightsNotFoundError
from ..files import sha256
from .backends.base import Backend
from .backends.onnxruntime import OnnxModel
from .backends.openvino import OpenvinoModel
from .backends.tensorrt import TensorrtModel

__all__ = []

FORMAT_VERSION = 1
PARTS = ("encoder", "masks", "image", "decoder")
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "tensorrt": ".plan"}


def folder_models(
    folder: Path, config: dict[str, Any], device: str | None, providers: Sequence[str] | None, threads: int | None
) -> dict[str, Backend]:
    """Return the four parts out of an exported folder, in the runtime that it was exported for."""
    models: dict[str, Backend] = {}
    for part in PARTS:
        path = folder / f"{part}{SUFFIXES[config['runtime']]}"
        if config["runtime"] == "onnx":
            models[part] = OnnxModel(path, ("CPUExecutionProvider",) if providers is None else providers, threads)
        elif config["runtime"] == "openvino":
            precision = "bf16" if config["precision"] == "bf16" and part == "encoder" else "f32"
            models[part] = OpenvinoModel(path, device or "CPU", precision, threads)
        else:
            models[part] = TensorrtModel(path)
    return models


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
