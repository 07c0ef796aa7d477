"""Options that several commands share, and how they are parsed."""

import re
from typing import Annotated

import typer

from ..errors import InvalidInputError

__all__ = ["Checkpoint", "Device", "Encoder", "ImageSize", "Model", "Threads", "numbers", "weights_device"]

Checkpoint = Annotated[str, typer.Option(help="Weights: 'default', 'fast', a file, a folder, or 'hf-hub:org/repo@revision'.")]
Model = Annotated[
    str, typer.Option(help="Weights: 'default', 'fast', a file, a folder or 'hf-hub:org/repo'; or an exported folder.")
]
Encoder = Annotated[str | None, typer.Option(help="Name of the encoder. Default: that of the weights.")]
ImageSize = Annotated[int | None, typer.Option(help="Side in pixels that images are resized to. Default: that of the weights.")]

Device = Annotated[
    str,
    typer.Option(
        help="auto, cpu, cuda, cuda:1 or mps. For an exported folder: cpu, GPU (OpenVINO), cuda or a provider (ONNX Runtime)."
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="Threads on a CPU. Default: OMP_NUM_THREADS, else the CPUs that this process may use.", min=1)
]


def weights_device(device: str) -> str:
    """Return where weights run beside an exported folder, whose device PyTorch may not know: then it is "auto"."""
    return device if re.fullmatch(r"(auto|cpu|cuda|mps)(:\d+)?", device) else "auto"


def numbers(text: str, count: int, form: str) -> list[float]:
    """Return the `count` numbers in a text such as "1,2"; `form` names them in the error."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise InvalidInputError(f"{text!r} is not {form}: give {count} numbers in pixels, separated by commas.")
    return values
