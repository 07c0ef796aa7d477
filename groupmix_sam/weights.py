"""Weights: found in this package, on disk or on the Hugging Face Hub; checked; loaded; saved; shared.

A file holds a whole Sam, `image_encoder.*`, `prompt_encoder.*` and `mask_decoder.*`, as safetensors. Its header says which
encoder it is for and how it was trained. timm reads the encoder out of the same file.
"""

import tempfile
import warnings
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from timm.models._hub import save_config_for_hf
from torch import Tensor

from .encoders.backbone import PREFIX
from .encoders.config import DEFAULT_ENCODER, OWN_STRIDES, own_stride, pretrained_file
from .errors import InvalidInputError, WeightsError, WeightsNotFoundError
from .files import make_folder, sha256, write_beside
from .hub import FILE_NAME, HUB_PREFIX, download, model_card, record_json, upload

__all__ = [
    "SAM_VITS",
    "SHIPPED",
    "Origin",
    "WeightsFile",
    "encoder_name",
    "find_weights",
    "is_exported",
    "load_prompt_and_decoder",
    "load_weights",
    "open_weights",
    "origin_of",
    "push_to_hub",
    "read_weights",
    "save_pretrained",
    "save_weights",
]

# MobileSAM's own file, by its size: a fine-tuned one of the same name is not refused.
MOBILE_SAM_PT = (40_728_226, "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f")
MOBILE_SAM_URL = "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt"
# The weights in this package, by the name that loads them.
SHIPPED = {"default": DEFAULT_ENCODER, "fast": "gmf_sam_2282_512"}
# Their sha256, so that a damaged installation is an error at once.
PRETRAINED = {
    DEFAULT_ENCODER: "7608db8a20c68b1393b046407c0d2e27a18e8c789f67ba493df2a44db42dd3c0",
    "gmf_sam_2282_512": "79c0def126b3c937af5d3219b9e644a3fe45c673f557ceb43f7bb466f165d2e1",
}
FORMAT_VERSION = "1"
# Smaller tensors stay in fp32 when weights are halved: norms, variances and the prompt encoder's positions need the digits.
HALF_FROM = 4096
# SAM's own encoders by their width, as segment-anything's registry names them.
SAM_VITS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}


class WeightsFile(NamedTuple):
    """A file that was read: its path, its tensors by their names in it, and its header's metadata."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


class Origin(NamedTuple):
    """What weights are for: the encoder, and the image size and stride that they were trained at; None where unsaid."""

    encoder: str | None = None
    image_size: int | None = None
    embed_stride: int | None = None


def open_weights(checkpoint: str | PathLike[str], encoder: str | None = None) -> WeightsFile:
    """Find, check and read weights, once.

    Args:
        checkpoint: "default" or "fast" (the weights in this package), a `.safetensors` file, a folder with `model.safetensors`,
            MobileSAM's `.pt`, or "hf-hub:org/repo[@revision]".
        encoder: Whose default, for "default".

    Raises:
        WeightsNotFoundError: there is nothing where `checkpoint` points.
        WeightsError: what is there is damaged or not safe to read.
    """
    path = find_weights(checkpoint, encoder)
    if checkpoint in SHIPPED and sha256(path) != PRETRAINED.get(path.stem):
        raise WeightsError(f"{path} is not the file that this package shipped with: reinstall groupmix-sam.")
    return WeightsFile(path, *read_weights(path))


def load_weights(sam: Sam, weights: WeightsFile) -> None:
    """Load a whole Sam's weights, every one of them, into `sam`, which has one of our encoders.

    Raises:
        WeightsError: they are damaged, or belong to another encoder.
    """
    name = encoder_name(sam)
    path, state_dict, metadata = weights
    architecture = metadata.get("architecture", name)
    if _family(architecture) != _family(name):
        raise WeightsError(f"{path} holds weights for {architecture!r}, not for {name!r}: pass encoder={architecture!r}.")
    version = metadata.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise WeightsError(f"{path} has format version {version}, this package reads {FORMAT_VERSION}: update groupmix-sam.")
    encoder = sam.image_encoder
    rename = import_module(type(encoder).__module__).checkpoint_filter_fn
    loaded = {k: v for k, v in state_dict.items() if not k.startswith("image_encoder.")}
    loaded |= {f"image_encoder.{k}": v for k, v in rename(state_dict, encoder).items()}
    lost = sorted(k for k, v in loaded.items() if v.is_floating_point() and not torch.isfinite(v).all())
    if lost:
        raise WeightsError(f"{path} is damaged, {_some('tensors hold values that are not finite', lost)}: download it again.")
    try:
        sam.load_state_dict(loaded, strict=True)
    except RuntimeError as e:
        expected = sam.state_dict()
        missing = sorted(expected.keys() - loaded.keys())
        unexpected = sorted(loaded.keys() - expected.keys())
        shapes = sorted(k for k in expected.keys() & loaded.keys() if expected[k].shape != loaded[k].shape)
        raise WeightsError(
            f"{path} does not fit {name!r}: {_some('missing', missing)}, {_some('unexpected', unexpected)}, "
            f"{_some('of another shape', shapes)}. Pass the encoder= that it was made for; MobileSAM's is 'sam_tiny_vit_5m'."
        ) from e


def load_prompt_and_decoder(sam: Sam, state_dict: dict[str, Tensor]) -> None:
    """Load the prompt encoder and the mask decoder of another Sam's weights, and leave the image encoder as it is."""
    for name in ("prompt_encoder", "mask_decoder"):
        part = {k.removeprefix(f"{name}."): v for k, v in state_dict.items() if k.startswith(f"{name}.")}
        try:
            getattr(sam, name).load_state_dict(part)
        except RuntimeError as e:
            raise WeightsError(f"the weights hold no whole {name}: give those of a whole MobileSAM.") from e


def find_weights(checkpoint: str | PathLike[str], encoder: str | None = None) -> Path:
    """Return the file that `checkpoint` stands for, downloaded if need be; `encoder` says whose default."""
    if not isinstance(checkpoint, (str, PathLike)):
        raise InvalidInputError(f"checkpoint is {checkpoint!r}: give 'default', 'fast', a path, 'hf-hub:org/repo' or None.")
    if checkpoint in SHIPPED:
        name = SHIPPED[str(checkpoint)] if encoder is None or checkpoint != "default" else encoder
        path = Path(pretrained_file(name))
        if not path.is_file():
            shipped = ", ".join(sorted(p.stem for p in path.parent.glob("*.safetensors"))) or "none"
            raise WeightsNotFoundError(
                f"no weights for {name!r} ship with this package (those that do: {shipped}): "
                "pass checkpoint= a path or 'hf-hub:org/repo', or None for an untrained model."
            )
        return path
    if isinstance(checkpoint, str) and checkpoint.startswith(HUB_PREFIX):
        return download(checkpoint.removeprefix(HUB_PREFIX))
    path = Path(checkpoint)
    try:
        path = path / FILE_NAME if path.is_dir() else path
        found = path.is_file()
    except OSError:  # a name that no file can have
        found = False
    if not found:
        fetch = (
            f"download it from {MOBILE_SAM_URL}"
            if path.name == "mobile_sam.pt"
            else "use 'default', 'fast' or 'hf-hub:org/repo'"
        )
        raise WeightsNotFoundError(f"there is no weights file {path}: check the path, or {fetch}.")
    return path


def is_exported(checkpoint: str | PathLike[str]) -> bool:
    """Return whether `checkpoint` is a folder that `groupmix-sam export` wrote; "default" and "fast" are never folders."""
    if not isinstance(checkpoint, (str, PathLike)) or checkpoint in SHIPPED:
        return False
    try:
        return Path(checkpoint, "config.json").is_file() and not Path(checkpoint, FILE_NAME).is_file()
    except OSError:  # a name that no file can have, or a folder that is not ours to read
        return False


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the header's metadata of a safetensors file, or of a `.pt` with nothing but tensors in it."""
    size, digest = MOBILE_SAM_PT
    if path.name == "mobile_sam.pt" and path.stat().st_size == size and sha256(path) != digest:
        raise WeightsError(f"{path} is damaged: its sha256 is not {digest}. Download it again.")
    if path.suffix in {".pt", ".pth"}:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about unusual pickles, that are refused below
                state_dict = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as e:  # damaged files make torch.load raise nearly anything
            raise WeightsError(
                f"{path} cannot be read as plain tensors, and nothing else is ever unpickled: "
                "download it again, or have its owner convert it to safetensors."
            ) from e
        if not isinstance(state_dict, dict) or not all(
            isinstance(k, str) and isinstance(v, Tensor) for k, v in state_dict.items()
        ):
            raise WeightsError(f"{path} holds something else than named tensors: save its model's state_dict() alone.")
        return state_dict, {}
    try:
        with safe_open(path, framework="pt") as f:
            return {key: f.get_tensor(key) for key in f.keys()}, f.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise WeightsError(
            f"{path} is not a whole safetensors file ({e}): download or save it again. Pickles are not read under any name."
        ) from e


def origin_of(weights: WeightsFile) -> Origin:
    """Return what weights are for: from our header, or from the tensors of MobileSAM's and SAM's own files."""
    _, tensors, metadata = weights
    patch = tensors.get("image_encoder.patch_embed.proj.weight")
    name = metadata.get("architecture")
    if name is None and any(key.startswith("image_encoder.layers.") for key in tensors):
        name = "sam_tiny_vit_5m"
    elif name is None and patch is not None:
        name = SAM_VITS.get(patch.shape[0])

    def number(key: str) -> int | None:
        value = metadata.get(key, "")
        return int(value) if value.isdecimal() and len(value) < 6 else None

    return Origin(name, number("image_size"), number("embed_stride"))


def _family(encoder: str) -> str:
    """Return the name that encoders share whose weights fit each other: `gmf_sam_2282_512` is `gmf_sam_2282` at stride 8."""
    return encoder.removesuffix("_512") if encoder in OWN_STRIDES else encoder


def encoder_name(sam: Sam) -> str:
    """Return the registered name of a Sam's encoder."""
    cfg = getattr(getattr(sam, "image_encoder", None), "pretrained_cfg", None)
    if not isinstance(sam, Sam) or not isinstance(cfg, dict):
        raise InvalidInputError(f"this {type(sam).__name__} was not built by build_sam_groupmix: build it there.")
    return str(cfg["architecture"])


def save_weights(sam: Sam, path: str | PathLike[str], *, training: dict[str, Any] | None = None, half: bool = False) -> Path:
    """Write a whole Sam as one safetensors file, beside and then renamed, and return its path.

    Args:
        sam: A model built by `build_sam_groupmix`.
        path: The file to write.
        training: How the weights came to be; goes into the header as JSON.
        half: Store the large tensors as fp16.

    Raises:
        InvalidInputError: the Sam was not built there, or its encoder is fused.
        SaveError: the file cannot be written.
    """
    path = Path(path)
    metadata = {"format": "pt", "format_version": FORMAT_VERSION, "library": "groupmix-sam"}
    metadata |= {"architecture": encoder_name(sam), "image_size": str(sam.image_encoder.img_size)}
    metadata |= {"embed_stride": str(sam.image_encoder.embed_stride)}
    if getattr(sam.image_encoder, "is_fused", False):
        raise InvalidInputError("nothing could load a fused encoder's weights: save the Sam that it was fused from.")
    if training is not None:
        metadata["training"] = record_json(training)
    state_dict = {k: v.detach().cpu().contiguous() for k, v in sam.state_dict().items()}
    if half:
        state_dict = {k: v.half() if v.is_floating_point() and v.numel() >= HALF_FROM else v for k, v in state_dict.items()}
    write_beside(path, lambda part: save_file(state_dict, part, metadata))
    return path


def save_pretrained(
    sam: Sam, folder: str | PathLike[str], *, training: dict[str, Any] | None = None, half: bool = False
) -> Path:
    """Write `model.safetensors`, `config.json` and a model card, `README.md`; both this package and timm read them back.

    Of an encoder "timm/..." there is no `config.json`: its neck is this package's, which alone reads it back.

    Args:
        sam: A model built by `build_sam_groupmix`.
        folder: Where to write; made if need be.
        training: How the weights came to be; goes into the header and the card.
        half: Store the large tensors as fp16.
    """
    folder = Path(folder)
    card = model_card(encoder_name(sam), str(folder), training)  # first, as it checks what it is given
    if folder.is_file():
        raise InvalidInputError(f"{folder} is a file: give a folder to write to.")
    make_folder(folder)
    encoder = sam.image_encoder
    save_weights(sam, folder / FILE_NAME, training=training, half=half)
    if not encoder_name(sam).startswith(PREFIX):
        model_args = {"img_size": encoder.img_size}
        if encoder.embed_stride != own_stride(encoder_name(sam)):
            model_args["embed_stride"] = encoder.embed_stride
        # a Path in older timm, declared as str in newer, which takes both
        write_beside(folder / "config.json", lambda part: save_config_for_hf(encoder, cast(Any, part), model_args=model_args))
    write_beside(folder / "README.md", lambda part: part.write_text(card, encoding="utf-8"))
    return folder


def push_to_hub(
    sam: Sam,
    repo: str,
    *,
    training: dict[str, Any] | None = None,
    half: bool = False,
    private: bool = False,
    message: str = "Upload Group-Mix SAM",
) -> str:
    """Upload what `save_pretrained` writes to a Hub repository "org/repo", made if need be; return the commit's address."""
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(sam, folder, training=training, half=half)
        card = model_card(encoder_name(sam), f"{HUB_PREFIX}{repo}", training)
        Path(folder, "README.md").write_text(card, encoding="utf-8")
        return upload(folder, repo, private=private, message=message)


def _some(what: str, keys: list[str]) -> str:
    names = f" ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else ""
    return f"{len(keys)} {what}{names}"
