"""Pictures and prompts as people have them, checked and brought to what SamPredictor takes; masks drawn over pictures."""

import io
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from .errors import ImageReadError, InvalidInputError

__all__ = [
    "as_box",
    "as_points",
    "as_rgb",
    "check_aspect",
    "check_boxes",
    "check_points",
    "decode_image",
    "draw_masks",
    "read_image",
]

# Okabe and Ito's colours, which people with colour blindness can tell apart.
COLORS = ((0, 158, 115), (230, 159, 0), (86, 180, 233), (213, 94, 0), (204, 121, 167), (240, 228, 66), (0, 114, 178))
# A picture of 16 bits without a higher value is one of 12 bits or fewer, or too dark for anything to be seen.
DIM = 4095


def read_image(path: str | PathLike[str]) -> NDArray[np.uint8]:
    """Read a picture as H x W x 3, uint8, RGB, turned upright as its EXIF data say.

    Grayscale and palettes become RGB, 16 bits become 8, transparency is dropped.

    Warns:
        UserWarning: it has 16 bits of which 12 or fewer are used, and so comes out nearly black.

    Raises:
        ImageReadError: it is not there, is no picture, is cut short or is larger than Pillow's limit.
    """
    if not isinstance(path, (str, PathLike)):
        raise InvalidInputError(f"the picture is {path!r}: give a path, or as_rgb() an array.")
    try:
        return decode_image(Path(path).read_bytes(), path)
    except FileNotFoundError as e:
        raise ImageReadError(f"there is no picture {path}: check the path.") from e
    except (OSError, ValueError) as e:  # a ValueError of a name that no file can have
        if isinstance(e, ImageReadError):
            raise
        raise ImageReadError(f"{path} cannot be read ({e}): check the path and its permissions.") from e


def decode_image(data: bytes, name: object, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """Decode a picture file's bytes as `read_image` does.

    Args:
        data: The file's bytes.
        name: What an error calls it.
        max_pixels: A limit that is lower than Pillow's, checked before the picture is decoded.

    Raises:
        ImageReadError: they are no picture, are cut short or make one that is larger than a limit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damage beside the pixels, such as in EXIF data
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as file:
                if max_pixels is not None and file.width * file.height > max_pixels:
                    raise ImageReadError(
                        f"{name} has {file.width} x {file.height} pixels, more than {max_pixels / 1e6:g} million: scale it "
                        "down first."
                    )
                image = ImageOps.exif_transpose(file)
                if not image.mode.startswith(("I", "F")):
                    return np.array(image.convert("RGB"))
                values = _as_uint16(np.asarray(image), name)  # deeper than 8 bits, which Pillow would clip rather than scale
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise ImageReadError(f"{name} is too large ({e}): scale it down first.") from e
    except ImageReadError:
        raise
    except UnidentifiedImageError as e:  # which only says where in memory the bytes are
        raise ImageReadError(f"{name} cannot be read as a picture: convert it to PNG or JPEG.") from e
    except Exception as e:  # damaged files make Pillow raise nearly anything
        raise ImageReadError(f"{name} cannot be read as a picture ({e}): convert it to PNG or JPEG.") from e
    if 0 < values.max() <= DIM:
        warnings.warn(
            f"{name} has 16 bits and no value above {values.max()}, and is nearly black when white is 65535: if it has "
            "fewer bits, scale it to 16 first.",
            stacklevel=2,
        )
    return as_rgb(values)


def as_rgb(image: Any) -> NDArray[np.uint8]:
    """Return a picture as H x W x 3, uint8, RGB.

    Args:
        image: H x W, H x W x 1, H x W x 3 (RGB) or H x W x 4 (RGBA, whose transparency is dropped); uint8, or uint16,
            which is scaled to 8 bits.
    """
    if not isinstance(image, np.ndarray):
        raise InvalidInputError(f"the picture is a {type(image).__name__}: give a NumPy array, or use read_image(path).")
    if image.dtype == np.uint16:
        image = np.round(image / 257).astype(np.uint8)
    if image.dtype != np.uint8:
        raise InvalidInputError(f"the picture has dtype {image.dtype}: give uint8 from 0 to 255, or uint16 to 65535.")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise InvalidInputError(f"the picture has shape {image.shape}: give H x W, H x W x 3 or H x W x 4.")
    if image.size == 0:
        raise InvalidInputError(f"the picture has shape {image.shape}, no pixel at all: check where it comes from.")
    if image.shape[2] == 1:
        image = image.repeat(3, axis=2)
    return np.ascontiguousarray(image[:, :, :3])


def check_aspect(size: tuple[int, int], image_size: int) -> None:
    """Raise InvalidInputError if a picture's short side, height or width, vanishes when the long one becomes `image_size`."""
    if int(min(size) * image_size / max(size) + 0.5) < 1:
        raise InvalidInputError(
            f"the picture of {size[1]} x {size[0]} pixels is too narrow to be resized to {image_size}: cut it into parts."
        )


def as_points(points: Any, labels: Any, size: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return N x 2 points in pixels, x before y, and N labels, 1 for foreground and 0 for background.

    Args:
        points: N pairs of x and y.
        labels: N labels, or None if all are foreground.
        size: The picture's height and width.
    """
    coords = _numbers(points, "points")
    if coords.ndim != 2 or coords.shape[1] != 2 or not len(coords):
        raise InvalidInputError(f"the points have shape {coords.shape}: give N x 2, each x and y in pixels.")
    check_points(coords, size)
    kinds = np.ones(len(coords)) if labels is None else _numbers(labels, "labels")
    if kinds.shape != (len(coords),) or not np.isin(kinds, (0, 1)).all():
        raise InvalidInputError(
            f"the labels are {kinds.tolist()} for {len(coords)} points: give one each, 1 foreground or 0 background."
        )
    return coords, kinds.astype(np.int64)


def as_box(box: Any, size: tuple[int, int]) -> NDArray[np.float64]:
    """Return a box as left, top, right, bottom in pixels.

    Args:
        box: Those four numbers.
        size: The picture's height and width.
    """
    coords = _numbers(box, "box")
    if coords.shape != (4,):
        raise InvalidInputError(f"the box has shape {coords.shape}: give four numbers, left, top, right, bottom in pixels.")
    check_boxes(coords[None], size)
    return coords


def check_points(points: NDArray[np.float64], size: tuple[int, int]) -> None:
    """Raise InvalidInputError if one of N x 2 points is outside a picture of that height and width."""
    height, width = size
    outside = (points < 0).any(1) | (points[:, 0] >= width) | (points[:, 1] >= height)
    if outside.any():
        x, y = points[outside][0]
        raise InvalidInputError(
            f"the point ({x:g}, {y:g}) is outside the picture of {width} x {height} pixels: x comes before y."
        )


def check_boxes(boxes: NDArray[np.float64], size: tuple[int, int]) -> None:
    """Raise InvalidInputError if one of N x 4 boxes has no area, or none of it in a picture of that height and width."""
    left, top, right, bottom = boxes.T
    empty = (right <= left) | (bottom <= top)
    if empty.any():
        raise InvalidInputError(
            f"the box {boxes[empty][0].tolist()} is reversed or has no area: give left < right and top < bottom, in pixels."
        )
    height, width = size
    outside = (right <= 0) | (bottom <= 0) | (left >= width) | (top >= height)
    if outside.any():
        raise InvalidInputError(f"the box {boxes[outside][0].tolist()} is outside the picture of {width} x {height} pixels.")


def draw_masks(
    image: NDArray[np.uint8],
    masks: Sequence[NDArray[np.bool_]],
    *,
    points: NDArray[np.float64] | None = None,
    labels: NDArray[np.int64] | None = None,
    box: NDArray[np.float64] | None = None,
) -> Image.Image:
    """Return the picture with its masks tinted and outlined, and the prompts drawn.

    Args:
        image: What `as_rgb` takes.
        masks: H x W each, of bool.
        points: N x 2, in pixels, x before y.
        labels: N, 1 for foreground (green) and 0 for background (red).
        box: Left, top, right, bottom in pixels; or several, N x 4.
    """
    image = as_rgb(image)
    for mask in masks:
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.shape != image.shape[:2]:
            what = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise InvalidInputError(f"a mask is {what}: give bool arrays of the picture's {image.shape[:2]}.")
    out = image.astype(np.float32)
    for mask, color in zip(masks, COLORS * (len(masks) // len(COLORS) + 1), strict=False):
        out[mask] = 0.5 * out[mask] + 0.5 * np.array(color)
        out[_outline(mask)] = color
    picture = Image.fromarray(out.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    width = max(2, round(max(picture.size) / 400))
    if box is not None:
        for corners in np.reshape(box, (-1, 4)).tolist():
            draw.rectangle(corners, outline=(255, 255, 255), width=width)
    if points is not None:
        radius = 3 * width
        for (x, y), label in zip(points, np.ones(len(points)) if labels is None else labels, strict=True):
            fill = (40, 200, 40) if label else (220, 40, 40)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=(255, 255, 255), width=width)
    return picture


def _as_uint16(values: NDArray[Any], name: object) -> NDArray[np.uint16]:
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ImageReadError(f"{name} has values that are not 8 or 16 bits, from {values.min()} to {values.max()}: convert it.")
    return values.astype(np.uint16)


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _numbers(values: Any, what: str) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as e:
        raise InvalidInputError(f"the {what} are {values!r}: give numbers, in pixels.") from e
    if not np.isfinite(array).all():
        raise InvalidInputError(f"the {what} hold a number that is not finite: {array.tolist()}.")
    return array
