"""An exported folder whose four graphs are written by hand, as an export takes half a minute: quick, and nothing is learnt."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from groupmix_sam.files import sha256
from groupmix_sam.preprocess import PIXEL_MEAN, PIXEL_STD

__all__ = ["write_folder"]

SIDE, STRIDE, CHANNELS = 256, 8, 4
TOKENS = ("tokens", "keys", "values", "queries")


def write_folder(folder: Path) -> Path:
    """Write a folder for ONNX Runtime. Its masks are diamonds around the middle of a prompt's points, frayed by the image."""
    random = np.random.default_rng(0)
    grid, logits = SIDE // STRIDE, 4 * SIDE // STRIDE
    rows, columns = (2 * axis.astype(np.float32)[None, None] for axis in np.mgrid[:logits, :logits])
    constants = {
        "patch": random.normal(size=(CHANNELS, 3, STRIDE, STRIDE)) / STRIDE,
        "paint": 10 * random.normal(size=(CHANNELS, 4, 4, 4)),
        "columns": columns,
        "rows": rows,
        "radii": np.array([70, 30, 50, 90]).reshape(1, 4, 1, 1),
        "shares": np.array([[0.3, 0.1, 0.2, 0.25]]),
    }
    features, shared = ("images", CHANNELS, grid, grid), ("one", CHANNELS, grid, grid)
    folder.mkdir()
    _save(
        folder / "encoder.onnx",
        {"images": ("images", 3, SIDE, SIDE)},
        {"features": features},
        [helper.make_node("Conv", ["images", "patch"], ["features"], strides=[STRIDE, STRIDE])],
        {"patch": constants["patch"]},
    )
    _save(
        folder / "image.onnx",
        {"features": shared},
        dict.fromkeys(TOKENS, shared),
        [helper.make_node("Identity", ["features"], [name]) for name in TOKENS],
    )
    _save(
        folder / "masks.onnx",
        {"masks": (1, 1, logits, logits)},
        {"dense": (1, 1, grid, grid)},
        [helper.make_node("AveragePool", ["masks"], ["dense"], kernel_shape=[4, 4], strides=[4, 4])],
    )
    nodes = [helper.make_node("ReduceMean", ["points", "axis"], ["middles"])]  # P x 1 x 2
    nodes += [helper.make_node("Split", ["middles"], ["x", "y"], axis=2, num_outputs=2)]
    for name, places in (("x", "columns"), ("y", "rows")):
        nodes += [
            helper.make_node("Unsqueeze", [name, "last"], [f"{name}4"]),  # P x 1 x 1 x 1
            helper.make_node("Sub", [places, f"{name}4"], [f"{name}_signed"]),
            helper.make_node("Abs", [f"{name}_signed"], [f"{name}_away"]),
        ]
    nodes += [
        helper.make_node("Add", ["x_away", "y_away"], ["away"]),
        helper.make_node("Sub", ["radii", "away"], ["diamonds"]),
        helper.make_node("Sum", list(TOKENS), ["summed"]),
        helper.make_node("ConvTranspose", ["summed", "paint"], ["painted"], strides=[4, 4]),
        helper.make_node("Add", ["diamonds", "painted"], ["logits"]),
        helper.make_node("ReduceMean", ["labels", "axis"], ["kinds"]),  # P x 1
        helper.make_node("Mul", ["kinds", "shares"], ["scores"]),
    ]
    _save(
        folder / "decoder.onnx",
        {**dict.fromkeys(TOKENS, shared), "points": ("prompts", "points", 2), "labels": ("prompts", "points")},
        {"logits": ("prompts", 4, logits, logits), "scores": ("prompts", 4)},
        nodes,
        {name: value for name, value in constants.items() if name != "patch"},
    )
    config = {
        "format_version": 1,
        "runtime": "onnx",
        "precision": "fp32",
        "image_size": SIDE,
        "input_size": [SIDE, SIDE],
        "embed_stride": STRIDE,
        "mean": PIXEL_MEAN.tolist(),
        "std": PIXEL_STD.tolist(),
        "mask_threshold": 0.0,
        "dynamic_batch": True,
        "model_hash": "by hand",
        "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _save(path, inputs, outputs, nodes, constants=None):
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in named.items()]
        for named in (inputs, outputs)
    ]
    floats = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in (constants or {}).items()]
    whole = {"axis": [1], "last": [3]}
    used = {name for node in nodes for name in node.input}
    numbers = [numpy_helper.from_array(np.array(value), name) for name, value in whole.items() if name in used]
    graph = helper.make_graph(nodes, path.stem, *values, [*floats, *numbers])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
