"""`groupmix-sam push`."""

import json
from typing import Annotated

import typer

from .options import Encoder, ImageSize


def push(
    checkpoint: Annotated[
        str, typer.Argument(help="Weights: 'default', 'fast', a file, a folder, or 'hf-hub:org/repo@revision'.")
    ],
    repo: Annotated[str, typer.Argument(help="Hub repository, org/repo. It is created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Create it as private.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Store large tensors as fp16.")] = False,
    message: Annotated[str, typer.Option(help="Commit message.")] = "Upload Group-Mix SAM",
    encoder: Encoder = None,
    image_size: ImageSize = None,
) -> None:
    """Upload weights to the Hugging Face Hub, with a config for timm and a model card with their training record.

    Log in first with `hf auth login`, or set HF_TOKEN.

        groupmix-sam push runs/line/weights org/repo --private
    """
    from ..sam import build_sam_groupmix
    from ..weights import open_weights, push_to_hub

    weights = open_weights(checkpoint, encoder)
    metadata = weights.metadata
    sam = build_sam_groupmix(weights, encoder=encoder, image_size=image_size)
    training = json.loads(metadata["training"]) if "training" in metadata else None
    address = push_to_hub(sam, repo, training=training, half=half, private=private, message=message)
    typer.echo(f"pushed to {address}")
