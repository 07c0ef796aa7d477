"""Masks as annotation tools and other libraries keep them: COCO, LabelMe, YOLO, contours, index pictures, supervision.

`to_...` functions return what a file of that kind holds, `from_...` functions read it back. Polygons run through a mask's
outermost pixels, counted from 0, which belong to it: so OpenCV, LabelMe, supervision and YOLO's loaders draw them.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import InvalidInputError, UnknownNameError
from .extras import import_extra
from .images import COLORS

if TYPE_CHECKING:
    import supervision

__all__ = [
    "AnnotatedPicture",
    "Polygon",
    "Rle",
    "Thing",
    "decode_rle",
    "encode_rle",
    "fill_polygons",
    "from_coco",
    "from_contours",
    "from_labelme",
    "from_mask",
    "from_yolo",
    "to_coco",
    "to_contours",
    "to_detections",
    "to_labelme",
    "to_mask",
    "to_polygons",
    "to_yolo",
]

Mask = NDArray[np.bool_]
# A ring of points, x and y in pixels, and the rings of its holes.
Polygon = list[list[list[int]]]
# What labelling tools can still move about by hand.
TOLERANCE = 1.0
# Larger pictures are a fault in a file, and would take all memory.
MOST_PIXELS = 2**31


class Rle(TypedDict):
    """A mask as COCO has it: height and width, and run lengths, column by column, compressed into a string."""

    size: list[int]
    counts: str


@dataclass(frozen=True)
class Thing:
    """A mask and what is known of it.

    Attributes:
        mask: See `encode_rle`.
        score: The IoU with the truth that the model expects, 1 where nobody said.
        category: The name of what it shows.
        prompt: What was asked with, as `Prompt.record` has it.
    """

    mask: Rle
    score: float = 1.0
    category: str = "thing"
    prompt: dict[str, Any] | None = None


@dataclass(frozen=True)
class AnnotatedPicture:
    """A picture's file, its height and width, and the things in it."""

    path: Path
    size: tuple[int, int]
    things: list[Thing]

    def masks(self) -> list[Mask]:
        """Return the things' masks, H x W each."""
        return [decode_rle(thing.mask) for thing in self.things]


def to_coco(
    pictures: Iterable[AnnotatedPicture], folder: Path | None = None, categories: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return pictures as a COCO file in `folder` names them, by default the working directory's; masks are compressed RLE.

    Args:
        pictures: With their things.
        folder: Where the file will lie.
        categories: Names, counted from 1; by default those that occur, sorted.
    """
    pictures = list(pictures)
    names = categories or _categories(pictures)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures, 1):
        height, width = picture.size
        images.append({"id": number, "file_name": _from(folder, picture.path), "width": width, "height": height})
        for thing in picture.things:
            left, top, right, bottom, area = _extent(decode_rle(thing.mask))
            annotation: dict[str, Any] = {"id": len(annotations) + 1, "image_id": number}
            annotation |= {"category_id": _place(thing.category, names) + 1, "segmentation": thing.mask, "area": area}
            annotation |= {"bbox": [left, top, right - left, bottom - top], "iscrowd": 0, "score": thing.score}
            annotations.append(annotation | ({"prompt": thing.prompt} if thing.prompt else {}))
    named = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    return {"images": images, "annotations": annotations, "categories": named}


def from_coco(content: Mapping[str, Any], folder: Path | None = None) -> list[AnnotatedPicture]:
    """Return the pictures of a COCO file in `folder`, with RLE or polygons."""
    with _readable("COCO file"):
        names = {entry["id"]: str(entry["name"]) for entry in content.get("categories", [])}
        sizes = {entry["id"]: (int(entry["height"]), int(entry["width"])) for entry in content["images"]}
        things: dict[Any, list[Thing]] = {number: [] for number in sizes}
        for entry in content["annotations"]:
            shape, size = entry["segmentation"], sizes[entry["image_id"]]
            mask = decode_rle(shape) if isinstance(shape, Mapping) else fill_polygons([[_pairs(ring)] for ring in shape], size)
            category = names.get(entry["category_id"], str(entry["category_id"]))
            thing = Thing(encode_rle(mask), _score(entry), category, entry.get("prompt"))
            things[entry["image_id"]].append(thing)
        return [
            AnnotatedPicture((folder or Path()) / entry["file_name"], sizes[entry["id"]], things[entry["id"]])
            for entry in content["images"]
        ]


def to_contours(picture: AnnotatedPicture, folder: Path | None = None, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Return a picture's things as polygons: of each a list, each with its outline first and then its holes'."""
    things = [
        {
            "category": thing.category,
            "score": thing.score,
            "polygons": to_polygons(decode_rle(thing.mask), tolerance),
            **({"prompt": thing.prompt} if thing.prompt else {}),
        }
        for thing in picture.things
    ]
    return {"picture": _from(folder, picture.path), "size": list(picture.size), "things": things}


def from_contours(content: Mapping[str, Any], folder: Path | None = None) -> AnnotatedPicture:
    """Return the picture of a file of contours in `folder`."""
    with _readable("file of contours"):
        height, width = map(int, content["size"])
        things = [
            Thing(
                encode_rle(fill_polygons(entry["polygons"], (height, width))),
                _score(entry),
                str(entry["category"]),
                entry.get("prompt"),
            )
            for entry in content["things"]
        ]
        return AnnotatedPicture((folder or Path()) / content["picture"], (height, width), things)


def to_labelme(picture: AnnotatedPicture, folder: Path | None = None, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Return a picture's things as a LabelMe file in `folder` has them: a polygon a part; the parts of one thing share a group.

    A hole is joined to its outline by a cut of no width.
    """
    shapes = []
    for number, thing in enumerate(picture.things, 1):
        polygons = to_polygons(decode_rle(thing.mask), tolerance)
        for rings in polygons:
            shape: dict[str, Any] = {"label": thing.category, "score": thing.score, "points": _joined(rings)}
            shape |= {"group_id": number if len(polygons) > 1 else None, "description": "", "shape_type": "polygon"}
            shapes.append({**shape, "flags": {}})
    height, width = picture.size
    content: dict[str, Any] = {"version": "5.5.0", "flags": {}, "shapes": shapes}
    content |= {"imagePath": _from(folder, picture.path), "imageData": None}
    return content | {"imageHeight": height, "imageWidth": width}


def from_labelme(content: Mapping[str, Any], folder: Path | None = None) -> AnnotatedPicture:
    """Return the picture of a LabelMe file in `folder`; shapes of one label and group are one thing.

    Raises:
        InvalidInputError: it is none, or has another shape than polygons and rectangles.
    """
    with _readable("LabelMe file"):
        size = int(content["imageHeight"]), int(content["imageWidth"])
        groups: dict[Any, list[Mapping[str, Any]]] = {}
        for number, shape in enumerate(content["shapes"]):
            if shape["shape_type"] not in ("polygon", "rectangle"):
                raise InvalidInputError(f"a shape is a {shape['shape_type']}: give polygons and rectangles alone.")
            group = shape.get("group_id")
            groups.setdefault((shape["label"], number if group is None else ("group", group)), []).append(shape)
        things = []
        for (label, _), shapes in groups.items():
            mask = fill_polygons([[_corners(shape)] for shape in shapes], size)
            things.append(Thing(encode_rle(mask), _score(shapes[0]), str(label)))
        path = content["imagePath"].replace("\\", "/")
        return AnnotatedPicture((folder or Path()) / path, size, things)


def to_yolo(picture: AnnotatedPicture, categories: Sequence[str], tolerance: float = TOLERANCE) -> str:
    """Return a picture's things as YOLO's text for segmentation has them: a line a thing, its category's place and a polygon.

    Points are x and y as shares of the picture's sides. There is one polygon a thing: parts and holes are joined by cuts of no
    width.
    """
    height, width = picture.size
    lines = []
    for thing in picture.things:
        rings = [ring for polygon in to_polygons(decode_rle(thing.mask), tolerance) for ring in polygon]
        if rings:
            numbers = (f"{x / width:.6f} {y / height:.6f}" for x, y in _joined(rings))
            lines.append(f"{_place(thing.category, categories)} {' '.join(numbers)}\n")
    return "".join(lines)


def from_yolo(text: str, path: Path, size: tuple[int, int], categories: Sequence[str]) -> AnnotatedPicture:
    """Return the picture `path`, of height and width `size`, that YOLO's text for segmentation is about."""
    height, width = size
    things = []
    with _readable("YOLO file"):
        for line in filter(str.strip, text.splitlines()):
            category, *numbers = line.split()
            points = np.array(numbers, dtype=np.float64).reshape(-1, 2) * (width, height)
            if len(points) < 3 or int(category) < 0:
                raise ValueError(f"{line!r} is no class with a polygon of three points or more")  # a box, of detection
            things.append(Thing(encode_rle(fill_polygons([[points.tolist()]], size)), 1.0, categories[int(category)]))
    return AnnotatedPicture(path, size, things)


def to_mask(picture: AnnotatedPicture) -> Image.Image:
    """Return a picture of numbers: 0 is nothing, n the n-th thing, small ones before large ones where they overlap.

    Up to 255 things it has 8 bits and a palette, in which they have the overlay's colours; above, 16 bits.
    """
    masks = picture.masks()
    index = np.zeros(picture.size, dtype=np.uint8 if len(masks) < 256 else np.uint16)
    for number in sorted(range(len(masks)), key=lambda i: -np.count_nonzero(masks[i])):
        index[masks[number]] = number + 1
    image = Image.fromarray(index)
    if index.dtype == np.uint8:
        image.putpalette([0, 0, 0, *(value for i in range(255) for value in COLORS[i % len(COLORS)])])
    return image


def from_mask(image: Image.Image, path: Path) -> AnnotatedPicture:
    """Return the things of the picture `path` that `to_mask` numbered; what others hide of them is not there."""
    index = np.asarray(image)
    if index.ndim != 2:
        raise InvalidInputError(f"the mask has shape {index.shape}: give a picture of numbers, of a palette or gray.")
    things = [Thing(encode_rle(index == number)) for number in np.unique(index) if number]
    return AnnotatedPicture(path, (index.shape[0], index.shape[1]), things)


def to_detections(picture: AnnotatedPicture, categories: Sequence[str] | None = None) -> "supervision.Detections":
    """Return a picture's things for supervision: boxes, masks, scores as confidence, categories as class_id and class_name.

    Args:
        picture: With its things.
        categories: Names, counted from 0; by default those that occur, sorted.

    Raises:
        MissingExtraError: there is no supervision.
    """
    sv = import_extra("supervision", "supervision")
    if not picture.things:
        return sv.Detections.empty()
    names = categories or _categories([picture])
    masks = np.stack(picture.masks())
    return sv.Detections(
        xyxy=sv.mask_to_xyxy(masks).astype(np.float32),
        mask=masks,
        confidence=np.array([thing.score for thing in picture.things], dtype=np.float32),
        class_id=np.array([_place(thing.category, names) for thing in picture.things]),
        data={"class_name": np.array([thing.category for thing in picture.things])},
    )


def to_polygons(mask: Mask, tolerance: float = TOLERANCE) -> list[Polygon]:
    """Return a mask's parts, each an outline and its holes'; with tolerance 0, `fill_polygons` gives the same mask again.

    Args:
        mask: H x W of bool.
        tolerance: Pixels by which the polygons may leave the outline, so as to have fewer points; parts and holes that are no
            wider vanish, but for the largest part.

    Raises:
        MissingExtraError: there is no OpenCV.
    """
    cv2 = import_extra("cv2", "stream")
    found, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [i for i in range(len(found)) if tree[0, i, 3] < 0]
    largest = max(outlines, key=lambda i: cv2.contourArea(found[i]), default=None)
    parts: dict[int, Polygon] = {}
    for i in sorted(range(len(found)), key=lambda i: tree[0, i, 3] >= 0):  # outlines before holes
        ring = cv2.approxPolyDP(found[i], tolerance, True)[:, 0].tolist()
        if len(ring) < 3:
            if tolerance > 0 and i != largest:
                continue
            ring += [ring[-1]] * (3 - len(ring))  # fewer than three points are no polygon to most tools
        outline = int(tree[0, i, 3])
        if outline < 0:
            parts[i] = [ring]
        elif outline in parts:
            parts[outline].append(ring)
    return list(parts.values())


def fill_polygons(polygons: Iterable[Sequence[Any]], size: tuple[int, int]) -> Mask:
    """Return the mask, of height and width `size`, of parts, each an outline and its holes'; points are rounded to pixels.

    Raises:
        MissingExtraError: there is no OpenCV.
    """
    cv2 = import_extra("cv2", "stream")
    if min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
        raise InvalidInputError(f"the picture has {size[1]} x {size[0]} pixels: give its width and height.")
    mask = np.zeros(size, dtype=np.uint8)
    for rings in polygons:
        cv2.fillPoly(mask, [_ring(ring) for ring in rings], 1)
    return mask.astype(bool)


def encode_rle(mask: Mask) -> Rle:
    """Return a mask, H x W of bool, as COCO's compressed RLE; byte for byte what pycocotools writes."""
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2:
        what = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InvalidInputError(f"the mask is {what}: give an H x W array of bool.")
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = [0, 0] if flat.size and flat[0] else [0]  # the runs begin with one of background, which may be empty
    counts = [stop - start for start, stop in pairwise([*first, *changes.tolist(), flat.size])]
    return {"size": [int(side) for side in mask.shape], "counts": _compress(counts)}


def decode_rle(rle: Mapping[str, Any]) -> Mask:
    """Return COCO's RLE, compressed or as a list of run lengths, as a mask, H x W of bool.

    Raises:
        InvalidInputError: it is no RLE, or its runs are not the size's.
    """
    try:
        (height, width), counts = map(int, rle["size"]), rle["counts"]
        runs = _decompress(counts) if isinstance(counts, (str, bytes)) else [int(count) for count in counts]
        if min(height, width, *runs) < 0 or sum(runs) != height * width or sum(runs) > MOST_PIXELS:
            raise ValueError(f"runs of {sum(runs)} pixels for {width} x {height}")
    except (IndexError, KeyError, OverflowError, TypeError, ValueError) as e:
        raise InvalidInputError(f"a mask is no RLE ({e!r}): give COCO's size and counts.") from e
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def _joined(rings: Polygon) -> list[list[int]]:
    """Return one ring that goes through all: there and back between the nearest points of each and of those before it."""
    path = np.array(rings[0])
    for ring in map(np.array, rings[1:]):
        distances = ((path[:, None] - ring[None]) ** 2).sum(2)
        at, start = divmod(int(distances.argmin()), len(ring))
        turned = np.roll(ring, -start, axis=0)
        path = np.concatenate([path[: at + 1], turned, turned[:1], path[at:]])
    return path.tolist()


def _ring(points: Any) -> NDArray[np.int32]:
    """Return N x 2 points, rounded, as OpenCV takes them."""
    ring = np.array(points, dtype=np.float64)
    if ring.ndim != 2 or ring.shape[1] != 2 or not (np.abs(ring) < 1e6).all():
        raise InvalidInputError(f"a polygon is {points!r:.80}: give pairs of x and y in pixels.")
    return np.round(ring).astype(np.int32)[:, None]


def _corners(shape: Mapping[str, Any]) -> list[Any]:
    if shape["shape_type"] == "polygon":
        return list(shape["points"])
    points = np.array(shape["points"], dtype=np.float64)  # LabelMe has two opposite corners, X-AnyLabeling all four
    if points.shape not in ((2, 2), (4, 2)):
        raise ValueError(f"a rectangle of {len(points)} points")
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def _pairs(numbers: Sequence[float]) -> list[list[float]]:
    return np.array(numbers, dtype=np.float64).reshape(-1, 2).tolist()


def _extent(mask: Mask) -> tuple[int, int, int, int, int]:
    """Return left, top, right, bottom and area of a mask; zeros if it is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0, 0
    area = int(np.count_nonzero(mask))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1, area


def _score(entry: Mapping[str, Any]) -> float:
    score = entry.get("score")
    return 1.0 if score is None else float(score)


def _place(category: str, names: Sequence[str]) -> int:
    if category not in names:
        raise UnknownNameError.near("category", category, names)
    return names.index(category)


def _categories(pictures: Iterable[AnnotatedPicture]) -> list[str]:
    return sorted({thing.category for picture in pictures for thing in picture.things})


def _from(folder: Path | None, path: Path) -> str:
    """Return a path as a file in `folder` names it."""
    try:
        return Path(os.path.relpath(path, folder or Path())).as_posix()
    except ValueError:  # on another of Windows' drives
        return path.resolve().as_posix()


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Make what is wrong with a file's content an error of ours."""
    try:
        yield
    except InvalidInputError:
        raise
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as e:
        raise InvalidInputError(f"this is no {what} that can be read ({e!r}): check where it comes from.") from e


def _compress(counts: list[int]) -> str:
    """Return run lengths as COCO's string: from the fourth on less the one before the last, five bits a character."""
    out = bytearray()
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits, value = value & 0x1F, value >> 5
            more = value != (-1 if bits & 0x10 else 0)
            out.append((bits | 0x20 if more else bits) + 48)
    return out.decode("ascii")


def _decompress(text: str | bytes) -> list[int]:
    codes = [code - 48 for code in (text.encode("ascii") if isinstance(text, str) else text)]
    if any(not 0 <= code < 64 for code in codes) or (codes and codes[-1] & 0x20):
        raise ValueError(f"{text!r}")
    counts: list[int] = []
    value = shift = 0
    for code in codes:
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return counts
