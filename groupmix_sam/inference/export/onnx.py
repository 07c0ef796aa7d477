"""A Sam as five ONNX graphs that every runtime takes: encoder, image, masks, decoder and single_mask.

The encoder maps images to features, `image` features to what the decoder needs of them, `masks` an earlier prediction's
logits to what is added to the features, and the decoder prompts to logits and scores. `single_mask` is a decoder for one mask
of those rows and columns that are asked for. No input is a shape, the number of prompts and of points is free, and resizing to
the image is the host's.
"""

import math
import re
import warnings
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor, nn

from ...encoders.config import EMBED_DIM
from ...encoders.groupmixformer import GroupMixFormer
from ...errors import MissingExtraError
from ..fused_decoder import FusedDecoder, ImageTokens
from ..fused_encoder import fuse_encoder
from .convolutions import as_convolutions

__all__ = ["quantize", "write_graphs"]

OPSET = 18  # the exporter's own; 17 would be converted
TOKENS = ["tokens", "keys", "values", "queries"]


class _Encoder(nn.Module):
    """An encoder in a dtype between fp32 input and output."""

    def __init__(self, sam: Sam, dtype: torch.dtype) -> None:
        super().__init__()
        encoder = sam.image_encoder
        fused = as_convolutions(fuse_encoder(encoder)) if isinstance(encoder, GroupMixFormer) else deepcopy(encoder).eval()
        self.encoder = fused.to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.encoder(images.to(self.dtype))
        return features.float()


class _Image(nn.Module):
    def __init__(self, decoder: FusedDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.decoder.image(features))


class _Masks(nn.Module):
    def __init__(self, decoder: FusedDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, masks: Tensor) -> Tensor:
        return self.decoder.embed_masks(masks)


class _Prompts(nn.Module):
    def __init__(self, decoder: FusedDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, tokens: Tensor, keys: Tensor, values: Tensor, queries: Tensor, points: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits, scores = self.decoder(ImageTokens(tokens, keys, values, queries), points, labels)
        return logits, scores


class _SingleMask(nn.Module):
    def __init__(self, decoder: FusedDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        tokens: Tensor,
        keys: Tensor,
        values: Tensor,
        queries: Tensor,
        points: Tensor,
        labels: Tensor,
        ambiguous: Tensor,
        rows: Tensor,
        columns: Tensor,
    ) -> tuple[Tensor, Tensor]:
        image = ImageTokens(tokens, keys, values, queries)
        return self.decoder.single_mask(image, points, labels, ambiguous, rows, columns)


def write_graphs(
    sam: Sam,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    dynamic_batch: bool = False,
    input_size: tuple[int, int] | None = None,
) -> None:
    """Write `encoder.onnx`, `image.onnx`, `masks.onnx`, `decoder.onnx` and `single_mask.onnx` to a folder.

    Args:
        sam: A model built by `build_sam_groupmix`, on the CPU; the graphs are for its image size.
        folder: Where to write; it exists.
        dtype: Of the encoder, fp32 or fp16; its softmax over the tokens stays in fp32, as do the other graphs.
        dynamic_batch: Whether the encoder takes any number of images, or one.
        input_size: Height and width of the encoder's input, multiples of 16; by default the Sam's square.

    Raises:
        MissingExtraError: there is no onnx, onnxscript or onnxslim.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it
        import onnxslim
    except ImportError as e:
        raise MissingExtraError.of(e.name or "onnx", "onnx") from e
    decoder = FusedDecoder(sam)
    height, width = input_size or (decoder.input_size, decoder.input_size)
    rows, columns = (side * decoder.grid[0] // decoder.input_size for side in (height, width))
    features, masks = torch.zeros(1, EMBED_DIM, rows, columns), torch.zeros(1, 1, 4 * rows, 4 * columns)
    with torch.no_grad():
        tokens = decoder.image(features)
    prompted = {0: torch.export.Dim("prompts"), 1: torch.export.Dim("points")}
    cropped = [{0: torch.export.Dim(side)} for side in ("rows", "columns")]
    batched = {0: torch.export.Dim("batch")} if dynamic_batch else {}
    # Free sizes are traced with 2 or more, as 1 would be taken for a constant.
    images = torch.zeros(2 if dynamic_batch else 1, 3, height, width)
    for name, module, inputs, shapes, input_names, output_names in (
        ("encoder", _Encoder(sam, dtype), (images,), (batched,), ["images"], ["features"]),
        ("image", _Image(decoder), (features,), ({},), ["features"], TOKENS),
        ("masks", _Masks(decoder), (masks,), ({},), ["masks"], ["dense"]),
        (
            "decoder",
            _Prompts(decoder),
            (*tokens, torch.zeros(2, 3, 2), torch.ones(2, 3)),
            ({}, {}, {}, {}, prompted, prompted),
            [*TOKENS, "points", "labels"],
            ["logits", "scores"],
        ),
        (
            "single_mask",
            _SingleMask(decoder),
            (*tokens, torch.zeros(2, 3, 2), torch.ones(2, 3), torch.ones(2), *(torch.arange(n).float() for n in (4, 5))),
            ({}, {}, {}, {}, prompted, prompted, {0: prompted[0]}, *cropped),
            [*TOKENS, "points", "labels", "ambiguous", "rows", "columns"],
            ["logits", "scores"],
        ),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, about names of sizes
            program = torch.onnx.export(
                module.eval(),
                inputs,
                dynamo=True,
                opset_version=OPSET,
                input_names=input_names,
                output_names=output_names,
                dynamic_shapes=shapes,
                custom_translation_table={torch.ops.aten.gelu.default: _gelu, torch.ops.aten.rsqrt.default: _rsqrt},
                verbose=False,
            )
        assert program is not None
        onnx.save(onnxslim.slim(program.model_proto), str(folder / f"{name}.onnx"))


def _gelu(x: Any, approximate: str = "none") -> Any:
    """GELU in an order that ONNX Runtime takes for one operation; of the exporter's own it makes five passes over tokens."""
    from onnxscript import opset18

    op: Any = opset18

    def constant(value: float) -> Any:
        return op.CastLike(op.Constant(value_float=value), x)

    if approximate == "tanh":
        cube = op.Mul(op.Mul(op.Mul(x, x), x), constant(0.044715))
        step = op.Tanh(op.Mul(op.Add(x, cube), constant(math.sqrt(2 / math.pi))))
    else:
        step = op.Erf(op.Div(x, constant(math.sqrt(2))))
    return op.Mul(op.Mul(x, op.Add(step, constant(1.0))), constant(0.5))


def _rsqrt(x: Any) -> Any:
    """1 / sqrt(x), without Reciprocal, which Rockchip's NPU lacks."""
    from onnxscript import opset18

    op: Any = opset18
    return op.Div(op.CastLike(op.Constant(value_float=1.0), x), op.Sqrt(x))


class _Images:
    """Inputs one by one, as ONNX Runtime's calibration asks for them."""

    def __init__(self, name: str, inputs: Iterable[NDArray[np.float32]]) -> None:
        self.feeds = ({name: x} for x in inputs)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self.feeds, None)


def holds_in_int8(weight: str) -> bool:
    """Whether a GroupMixFormer's convolution is to be in INT8, by its weight's name in the graph.

    The third stage's projections and MLPs are. Others cost more of the masks and gain ONNX Runtime no time, for all that is
    quantized and transposed around them (docs/research/2026-11-25-int8.md).
    """
    return re.fullmatch(r"encoder\.stages\.2\.\d+\.(proj|mlp\.\d)\.weight", weight) is not None


def quantize(
    path: Path, calibration: Iterable[NDArray[np.float32]], products_only: bool = False, symmetric: bool = False
) -> None:
    """Turn an ONNX file into one in INT8: its convolutions and its products with weights, by ONNX Runtime's static QDQ.

    Args:
        path: The file, which is replaced.
        calibration: What goes into its only input.
        products_only: Whether of a GroupMixFormer's convolutions only those are in INT8 that hold and pay in it.
        symmetric: Whether all zero points are 0 and biases stay in fp32, as TensorRT wants it.

    Raises:
        MissingExtraError: there is no onnxruntime.
    """
    import onnx

    try:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as e:
        raise MissingExtraError.of(e.name or "onnxruntime", "onnx") from e
    quant_pre_process(str(path), str(path), skip_symbolic_shape=True)
    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer}

    def in_int8(node: onnx.NodeProto) -> bool:
        # Not the attention's products, both of whose factors depend on the image.
        if node.op_type not in {"Gemm", "MatMul", "Conv"} or not weights & {*node.input}:
            return False
        if node.op_type != "Conv" or not products_only:
            return True
        return holds_in_int8(node.input[1])

    nodes = [node.name for node in graph.node if in_int8(node)]
    assert nodes  # ONNX Runtime takes an empty list for all of them
    quantize_static(
        str(path),
        str(path),
        _Images(graph.input[0].name, calibration),
        quant_format=QuantFormat.QDQ,
        nodes_to_quantize=nodes,
        per_channel=True,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,  # with signed weights, what VNNI multiplies
        weight_type=QuantType.QInt8,
        extra_options={
            "CalibMovingAverage": True,  # the mean of the images' ranges: one image's extreme makes all steps coarse
            "ActivationSymmetric": symmetric,
            "QuantizeBias": not symmetric,
        },
    )
