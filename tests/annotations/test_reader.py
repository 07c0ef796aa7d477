"""Annotations of every format, read back and matched with images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupmix_sam.annotations import AnnotatedImage, AnnotationWriter, Instance, read_annotations
from groupmix_sam.errors import InvalidInputError
from groupmix_sam.images import find_images, name_images
from groupmix_sam.masks import mask_iou

SIZE = (48, 64)


def disc(x, y, r):
    ys, xs = np.mgrid[: SIZE[0], : SIZE[1]]
    return (xs - x) ** 2 + (ys - y) ** 2 < r**2


@pytest.fixture
def line(tmp_path):
    """Two folders with an image of the same name in each, and one more."""
    for name in ("line/a/1.png", "line/b/1.png", "line/b/2.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(path)
    return tmp_path / "line"


def masks_of(line):
    return {image: [disc(20 + i, 24, 10), disc(48, 20, 6)] for i, image in enumerate(find_images(line))}


@pytest.mark.parametrize("kind", ["coco", "labelme", "yolo"])
def test_what_the_writer_wrote_is_read_back(line, tmp_path, kind):
    masks = masks_of(line)
    with AnnotationWriter(tmp_path / "out", [kind], name_images([line]), ["disc", "hole"], tolerance=0.0) as writer:
        for (name, image), (one, other) in zip(name_images([line]).items(), masks.values(), strict=True):
            found = [Instance(one, category="disc"), Instance(other, category="hole")]
            writer.write(name, image.decode(), AnnotatedImage(image.path, SIZE, found))
    read = read_annotations(tmp_path / "out", find_images(line))
    assert read.images.keys() == masks.keys()
    assert read.left_out == []
    for image, annotated in read.images.items():
        assert [instance.category for instance in annotated.instances] == ["disc", "hole"]
        for instance, mask in zip(annotated.instances, masks[image], strict=True):
            assert mask_iou(instance.mask, mask) == 1.0


def coco(names, **more):
    images = [{"id": i, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(names)]
    annotations = [
        {"id": 10 + i, "image_id": i, "category_id": 1, "segmentation": {"size": [48, 64], "counts": [0, 100, 2972]}}
        for i in range(len(names))
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "part"}]} | more


def write(folder, content, name="annotations.json"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_images_are_found_by_path_then_by_name_and_folders(line, tmp_path):
    """A file from another machine names folders that are not here; its last parts tell the images."""
    labels = write(tmp_path / "labels", coco(["C:\\data\\line\\b\\1.png", "/data/2.png", "3.png", "../line/a/1.png"]))
    read = read_annotations(labels, find_images(line))
    assert {str(image.path.relative_to(line)) for image in read.images} == {"a/1.png", "b/1.png", "b/2.png"}
    assert read.left_out == ["annotated images that are not among the images: 1 (3.png in annotations.json)"]
    with pytest.raises(InvalidInputError, match=r"1\.png may be of .*a.1\.png or of .*b.1\.png: give paths with folders"):
        read_annotations(write(tmp_path / "labels", coco(["1.png"])), find_images(line))


def test_boxes_without_masks_are_counted(line, tmp_path):
    content = coco(["line/b/2.png"])
    content["annotations"] += [{"id": 5, "image_id": 0, "category_id": 1, "segmentation": [], "bbox": [1, 1, 5, 5]}]
    content["annotations"] += [{"id": 6, "image_id": 0, "category_id": 1, "bbox": [1, 1, 5, 5]}]
    read = read_annotations(write(tmp_path / "labels", content), find_images(line))
    assert read.left_out == [
        "annotations without a mask: 2 (annotation 5 in annotations.json, annotation 6 in annotations.json)"
    ]
    assert [len(annotated.instances) for annotated in read.images.values()] == [1]


def test_an_image_in_two_files_has_the_instances_of_both(line, tmp_path):
    labels = write(tmp_path / "labels", coco(["line/b/2.png"]), "one.json")
    write(labels, coco(["line/b/2.png"]), "two.json")
    # Jupyter's copy of a file that is edited there would double its instances, and macOS' of what else it knows is no JSON.
    write(labels / ".ipynb_checkpoints", coco(["line/b/2.png"]), "one-checkpoint.json")
    (labels / "._one.json").write_bytes(b"\x00\x05\x16\x07")
    (annotated,) = read_annotations(labels, find_images(line)).images.values()
    assert len(annotated.instances) == 2
    other = coco(["line/b/2.png"])
    other["images"][0] |= {"width": 48, "height": 64}
    other["annotations"] = []
    write(labels, other, "two.json")
    with pytest.raises(InvalidInputError, match=r"has .*2\.png twice, in two sizes"):
        read_annotations(labels, find_images(line))


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("annotations.json", "{", r"annotations\.json cannot be read as JSON"),
        (
            "annotations.json",
            coco(["2.png"], annotations=[{"id": 7, "image_id": 9, "segmentation": [[1, 1]]}]),
            "annotations.json: ",
        ),
        ("2.json", {"shapes": [{"shape_type": "circle"}], "imageHeight": 48, "imageWidth": 64}, "2.json: a shape is a circle"),
        ("2.txt", "0 0.5 0.5 0.2 0.2", r"2\.txt: .*has no class and polygon"),
        ("2.txt", "0 a b", r"2\.txt: "),
        ("9.txt", "0 0.1 0.1 0.2 0.1 0.2 0.2", "has no annotations of these images"),
        ("other.json", {"version": 1}, "has no annotations of these images"),
    ],
)
def test_files_that_cannot_be_read_are_named(line, tmp_path, name, content, match):
    with pytest.raises(InvalidInputError, match=match):
        read_annotations(write(tmp_path / "labels", content, name), find_images(line))


def test_a_file_that_is_none(line, tmp_path):
    write(tmp_path / "labels", {"version": 1}, "other.json")
    with pytest.raises(InvalidInputError, match="neither COCO's nor LabelMe's"):
        read_annotations(tmp_path / "labels" / "other.json", find_images(line))
    with pytest.raises(InvalidInputError, match="there are no annotations"):
        read_annotations(tmp_path / "none", find_images(line))


def test_classes_without_names_are_numbers(line, tmp_path):
    labels = write(tmp_path / "labels", "2 0.1 0.1 0.5 0.1 0.5 0.5\n", "2.txt")
    (annotated,) = read_annotations(labels, find_images(line)).images.values()
    assert [instance.category for instance in annotated.instances] == ["2"]
    write(labels, "nut\nbolt\nwasher\n", "classes.txt")
    (annotated,) = read_annotations(labels, find_images(line)).images.values()
    assert [instance.category for instance in annotated.instances] == ["washer"]
    assert annotated.path == Path(next(i for i in find_images(line) if i.path.name == "2.png").path)
    (labels / "classes.txt").write_bytes("nut\nSchlüssel\n".encode("latin-1"))
    with pytest.raises(InvalidInputError, match=r"classes\.txt: .*utf-8"):
        read_annotations(labels, find_images(line))
