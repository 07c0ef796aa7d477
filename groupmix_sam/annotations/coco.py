"""COCO annotation files."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..masks import decode_segmentation, encode_rle
from .types import (
    AnnotatedImage,
    Instance,
    category_index,
    category_names,
    image_path,
    prompt_of,
    prompt_record,
    readable,
    relative_path,
    score_of,
)

__all__ = ["add_image", "from_coco", "start_coco", "to_coco"]


def to_coco(
    images: Iterable[AnnotatedImage], folder: Path | None = None, categories: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return images as the content of a COCO file; masks are compressed RLE.

    Args:
        images: With their instances.
        folder: Where the file will lie, which the images' paths are relative to; by default the working directory.
        categories: Names, counted from 1; by default those that occur, sorted.
    """
    images = list(images)
    content = start_coco(categories or category_names(images))
    for image in images:
        add_image(content, image, folder)
    return content


def start_coco(categories: Sequence[str]) -> dict[str, Any]:
    """Return the content of a COCO file without images."""
    return {"images": [], "annotations": [], "categories": [{"id": i, "name": name} for i, name in enumerate(categories, 1)]}


def add_image(content: dict[str, Any], image: AnnotatedImage, folder: Path | None = None) -> None:
    """Add an image to the content of a COCO file in `folder`."""
    names = [category["name"] for category in content["categories"]]
    number, annotations = len(content["images"]) + 1, content["annotations"]
    height, width = image.size
    file_name = relative_path(folder, image.path)
    for instance in image.instances:
        x0, y0, x1, y1 = instance.box
        annotation = {
            "id": len(annotations) + 1,
            "image_id": number,
            "category_id": category_index(instance.category, names) + 1,
            "segmentation": encode_rle(instance.mask),
            "area": instance.area,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": int(instance.iscrowd),
            "score": instance.score,
        }
        annotations.append(annotation | prompt_record(instance))
    content["images"].append({"id": number, "file_name": file_name, "width": width, "height": height})


def from_coco(content: Mapping[str, Any], folder: Path | None = None) -> list[AnnotatedImage]:
    """Return the images of a COCO file, whose masks are RLE or polygons.

    Args:
        content: The file's content.
        folder: The folder that the images' paths are relative to; by default the working directory.

    Raises:
        InvalidInputError: it is no COCO file, or a mask does not fit its image.
        MissingExtraError: it has polygons, and pycocotools is not installed.
    """
    with readable("COCO file"):
        names = {entry["id"]: str(entry["name"]) for entry in content.get("categories", [])}
        sizes = {entry["id"]: (int(entry["height"]), int(entry["width"])) for entry in content["images"]}
        instances: dict[Any, list[Instance]] = {number: [] for number in sizes}
        for entry in content["annotations"]:
            try:
                mask = decode_segmentation(entry["segmentation"], sizes[entry["image_id"]])
            except InvalidInputError as e:
                raise InvalidInputError(f"annotation {entry.get('id')} of image {entry['image_id']}: {e}") from e
            category = names.get(entry["category_id"], str(entry["category_id"]))
            crowd = bool(entry.get("iscrowd"))
            instances[entry["image_id"]].append(Instance(mask, score_of(entry), category, prompt_of(entry), crowd))
        return [
            AnnotatedImage(image_path(folder, entry["file_name"]), sizes[entry["id"]], instances[entry["id"]])
            for entry in content["images"]
        ]
