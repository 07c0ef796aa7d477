"""Annotation files, judged by those who read them: pycocotools, OpenCV, Pillow, supervision."""

import contextlib
import json
import os
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision as sv
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from groupmix_sam.annotations import (
    AnnotatedImage,
    Instance,
    from_coco,
    from_contours,
    from_labelme,
    from_mask,
    from_yolo,
    to_coco,
    to_contours,
    to_detections,
    to_labelme,
    to_mask,
    to_yolo,
)
from groupmix_sam.errors import InvalidInputError, MissingExtraError, UnknownNameError
from groupmix_sam.masks import decode_rle, encode_rle, fill_polygons, to_polygons
from groupmix_sam.prompts import Prompt

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40))


def by_pycocotools(rle):
    with warnings.catch_warnings():  # pycocotools has not heard of NumPy 2's copy=
        warnings.simplefilter("ignore", DeprecationWarning)
        return coco_mask.decode(rle).astype(bool)


def points(polygons):
    return sum(len(ring) for rings in polygons for ring in rings)


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def blobs(seed, count=3, size=(120, 160)):
    """Smooth masks with holes and several parts, as a SAM's are."""
    rng = np.random.default_rng(seed)
    noise = [cv2.GaussianBlur(rng.standard_normal(size), (0, 0), 8) for _ in range(count)]
    return [field > field.mean() + 0.4 * field.std() for field in noise]


def image(*found, path=Path("photos/a.jpg"), categories=("nut", "bolt", "nut")):
    scores = (0.9, 0.75, 0.5)
    prompts = (Prompt(box=[1.0, 2.0, 30.0, 40.0]), None, Prompt([[3.0, 4.0]]))
    instances = [Instance(m, *rest) for m, *rest in zip(found, scores, categories, prompts, strict=False)]
    return AnnotatedImage(path, found[0].shape, instances)


class TestRle:
    @given(masks)
    @settings(deadline=None)
    def test_is_pycocotools(self, mask):
        theirs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        ours = encode_rle(mask)
        assert ours == {"size": theirs["size"], "counts": theirs["counts"].decode()}
        assert np.array_equal(by_pycocotools(ours), mask)
        assert np.array_equal(decode_rle(ours), mask)
        assert np.array_equal(decode_rle(theirs), mask)

    @pytest.mark.parametrize("value", [False, True])
    def test_long_runs(self, value):
        """Runs that take several characters, and differences that are negative."""
        mask = np.full((3000, 4000), value)
        mask[1000:1003, 5] = not value
        mask[7, 3000:] = not value
        assert encode_rle(mask)["counts"] == coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
        assert np.array_equal(decode_rle(encode_rle(mask)), mask)

    def test_run_lengths_by_hand(self):
        """Columns: background 1, mask 2, then background 3."""
        expected = [[False, False], [True, False], [True, False]]
        assert decode_rle({"size": [3, 2], "counts": [1, 2, 3]}).tolist() == expected

    @pytest.mark.parametrize("mask", [None, [[True]], np.zeros(4, bool), np.zeros((2, 2), np.uint8)])
    def test_no_mask(self, mask):
        with pytest.raises(InvalidInputError, match="give an array of bool, H x W"):
            encode_rle(mask)

    @pytest.mark.parametrize(
        "rle",
        [
            {},
            {"size": [2, 2]},
            {"size": [2], "counts": "04"},
            {"size": [2, 2], "counts": [1, 2]},
            {"size": [2, 2], "counts": [5, -1]},
            {"size": [2, 2], "counts": [1, "a"]},
            {"size": [2, 2], "counts": 7},
            {"size": [-2, -2], "counts": [4]},
            {"size": [1e400, 1], "counts": [4]},
            {"size": [10**6, 10**6], "counts": [10**12]},
            {"size": [2, 2], "counts": "é"},
            {"size": [2, 2], "counts": "T"},
            {"size": [2, 2], "counts": b"\xff"},
        ],
    )
    def test_no_rle(self, rle):
        with pytest.raises(InvalidInputError, match=r"is no RLE .* give COCO's size and counts"):
            decode_rle(rle)

    @given(st.text(max_size=12) | st.binary(max_size=12))
    def test_any_counts_are_read_or_refused(self, counts):
        try:
            mask = decode_rle({"size": [4, 5], "counts": counts})
        except InvalidInputError:
            return
        assert mask.shape == (4, 5)


class TestPolygons:
    @given(masks)
    @settings(deadline=None)
    def test_without_tolerance_nothing_is_lost(self, mask):
        assert np.array_equal(fill_polygons(to_polygons(mask, 0), mask.shape), mask)

    @pytest.mark.parametrize("seed", range(5))
    def test_by_default_they_are_short_and_near(self, seed):
        for mask in blobs(seed):
            polygons, exact = to_polygons(mask), to_polygons(mask, 0)
            assert iou(fill_polygons(polygons, mask.shape), mask) > 0.94
            assert points(polygons) < 0.5 * points(exact)

    def test_a_ring_by_hand(self):
        """A square of 7 with a hole of 3: the hole's polygon runs through the mask's pixels around it."""
        mask = np.ones((7, 7), bool)
        mask[2:5, 2:5] = False
        ((outline, hole),) = to_polygons(mask, 0)
        assert sorted(outline) == [[0, 0], [0, 6], [6, 0], [6, 6]]
        assert sorted(hole) == [[1, 2], [1, 4], [2, 1], [2, 5], [4, 1], [4, 5], [5, 2], [5, 4]]

    def test_a_pixel_is_a_polygon_to_tools(self):
        mask = np.zeros((5, 5), bool)
        mask[3, 2] = True
        assert to_polygons(mask) == [[[[2, 3]] * 3]]

    def test_specks_vanish_within_the_tolerance(self):
        mask = np.zeros((20, 20), bool)
        mask[2:12, 3:13] = True
        mask[15, 15:17] = mask[18, 2] = True
        mask[6, 7] = False
        assert len(to_polygons(mask, 0)) == 3
        ((outline,),) = to_polygons(mask, 1.5)
        assert sorted(outline) == [[3, 2], [3, 11], [12, 2], [12, 11]]

    @pytest.mark.parametrize("ring", [[1, 2], [[1, 2, 3]], [[float("nan"), 1]], [[1e30, 1]], "a", [[None, 1]]])
    def test_no_polygon(self, ring):
        with pytest.raises((InvalidInputError, ValueError, TypeError)):
            fill_polygons([[ring]], (5, 5))

    @pytest.mark.parametrize("size", [(0, 5), (5, -1), (10**6, 10**6)])
    def test_no_size(self, size):
        with pytest.raises(InvalidInputError, match="give its width and height"):
            fill_polygons([], size)

    def test_without_opencv(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "cv2", None)
        with pytest.raises(MissingExtraError, match=r"groupmix-sam\[stream\]"):
            to_polygons(np.ones((3, 3), bool))


def even(numbers):
    return numbers[: len(numbers) // 2 * 2]


def coco_with(segmentation):
    """Return what is read of a file with one annotation in an image of 50 x 40."""
    content = to_coco([image(np.zeros((40, 50), bool))])
    content["annotations"][0]["segmentation"] = segmentation
    ((instance,),) = (annotated.instances for annotated in from_coco(content))
    return instance


def test_crowds_stay_crowds():
    """Where the format has a place for them: COCO, LabelMe's flags, contours, supervision's data."""
    mask = np.ones((4, 5), bool)
    annotated = AnnotatedImage(Path("a.jpg"), (4, 5), [Instance(mask, iscrowd=True), Instance(mask, category="one")])
    assert [a["iscrowd"] for a in to_coco([annotated])["annotations"]] == [1, 0]
    for write, read in (
        (lambda image: to_coco([image]), lambda content: from_coco(content)[0]),
        (to_labelme, from_labelme),
        (to_contours, from_contours),
    ):
        assert [i.iscrowd for i in read(json.loads(json.dumps(write(annotated)))).instances] == [True, False]
    assert to_detections(annotated).data["iscrowd"].tolist() == [1, 0]


def test_a_mask_of_another_size_is_refused():
    """So that no format is written, or read, whose masks are not the image's."""
    with pytest.raises(InvalidInputError, match=r"instance 1 of a.jpg has height and width \(4, 5\), the image has \(5, 4\)"):
        AnnotatedImage(Path("a.jpg"), (5, 4), [Instance(np.ones((4, 5), bool))])


class TestCoco:
    def test_as_pycocotools_and_supervision_read_it(self, tmp_path):
        one, two = image(*blobs(0), path=tmp_path / "a.png"), image(*blobs(1, 2, (90, 70)), path=tmp_path / "sub" / "b.png")
        for annotated in (one, two):
            annotated.path.parent.mkdir(exist_ok=True)
            Image.new("RGB", annotated.size[::-1]).save(annotated.path)
        file = tmp_path / "a.json"
        file.write_text(json.dumps(to_coco([one, two], tmp_path)))
        coco = COCO()
        coco.dataset = json.loads(file.read_text())
        with warnings.catch_warnings():  # as above
            warnings.simplefilter("ignore", DeprecationWarning)
            coco.createIndex()
            for number, annotated in enumerate((one, two), 1):
                for entry, instance in zip(coco.imgToAnns[number], annotated.instances, strict=True):
                    rle = coco_mask.encode(np.asfortranarray(instance.mask, dtype=np.uint8))
                    assert np.array_equal(coco.annToMask(entry), instance.mask)
                    assert entry["area"] == coco_mask.area(rle)
                    assert entry["bbox"] == coco_mask.toBbox(rle).tolist()
                    assert coco.cats[entry["category_id"]]["name"] == instance.category
        loaded = sv.DetectionDataset.from_coco(str(tmp_path), str(file), force_masks=True)
        assert loaded.classes == ["bolt", "nut"]
        for path, _, found in loaded:
            annotated = {"a.png": one, "b.png": two}[Path(path).name]
            assert np.array_equal(found.mask, np.stack(annotated.masks()))
            assert [loaded.classes[i] for i in found.class_id] == [instance.category for instance in annotated.instances]

    @given(st.lists(masks, min_size=1, max_size=3))
    @settings(deadline=None)
    def test_comes_back(self, found):
        images = [image(mask, path=Path(f"{i}.jpg")) for i, mask in enumerate(found)]
        images.append(AnnotatedImage(Path("empty.jpg"), (4, 5), []))
        assert from_coco(json.loads(json.dumps(to_coco(images)))) == images

    def test_a_square_along_the_edges_of_pixels_has_its_area(self):
        """20 x 20 pixels: 400, and not the 441 of corners that are taken for pixels."""
        read = coco_with([[5, 5, 25, 5, 25, 25, 5, 25]])
        assert np.argwhere(read.mask).min(0).tolist() == [5, 5]
        assert (read.area, read.box) == (400, (5, 5, 25, 25))

    @given(st.lists(st.lists(st.floats(-40, 90, width=32), min_size=4, max_size=16).map(even), min_size=1, max_size=3))
    @settings(deadline=None)
    def test_polygons_are_read_as_pycocotools_reads_them(self, polygons):
        read = coco_with(polygons)
        closed = [[*polygon, *polygon[:2]] for polygon in polygons]  # else two points would be a box to pycocotools
        rle = coco_mask.merge(coco_mask.frPyObjects(closed, 40, 50))
        assert np.array_equal(read.mask, by_pycocotools(rle))

    def test_two_points_enclose_nothing(self):
        assert coco_with([[5, 5, 25, 25]]).area == 0
        assert coco_with([[5, 5, 25, 5, 25, 25, 5, 25], [30, 5, 45, 30]]).area == 400

    @pytest.mark.parametrize(
        ("segmentation", "message"),
        [
            ({"size": [600, 400], "counts": [240000]}, r"annotation 1 of image 1: its mask is 400 x 600, the image 50 x 40"),
            ([], "there is no polygon"),
            ([[1, 2]], r"a polygon is \[1.0, 2.0\]"),
            ([[1, 2, 3, 4, 5]], "give x, y, x, y"),
            ([[1, 2, 3, 4, 5, float("nan")]], "far out of the image"),
            ([[1, 2, 3, 4, 5, 1e9]], "annotation 1 of image 1: a polygon reaches far out of the image"),
        ],
    )
    def test_masks_that_do_not_fit_are_named(self, segmentation, message):
        with pytest.raises(InvalidInputError, match=message):
            coco_with(segmentation)

    def test_without_pycocotools(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
        assert coco_with({"size": [40, 50], "counts": [0, 2000]}).area == 2000, "RLE needs none"
        with pytest.raises(MissingExtraError, match=r"groupmix-sam\[coco\]"):
            coco_with([[5, 5, 25, 5, 25, 25, 5, 25]])

    def test_paths_from_windows(self):
        content = to_coco([AnnotatedImage(Path("a.jpg"), (4, 5), [])])
        content["images"][0]["file_name"] = "photos\\a.jpg"
        assert from_coco(content)[0].path == Path("photos/a.jpg")

    @pytest.mark.parametrize(
        ("name", "area", "crowd"), [("square_400px", 400, False), ("crowd", 375, True), ("rle_of_another_size", None, False)]
    )
    def test_files_that_users_had(self, shared, name, area, crowd):
        content = json.loads((shared / "inputs" / f"{name}.coco.json").read_text())
        if area is None:
            with pytest.raises(InvalidInputError, match="annotation 1 of image 1: its mask is 400 x 600, the image 40 x 60"):
                from_coco(content)
            return
        (image,) = from_coco(content)
        assert [(i.area, i.iscrowd) for i in image.instances] == [(area, crowd)]
        assert to_coco([image])["annotations"][0]["iscrowd"] == int(crowd)

    def test_names_of_files(self, tmp_path, monkeypatch):
        annotated = image(np.ones((2, 2), bool), path=tmp_path / "photos" / "a.jpg")
        assert to_coco([annotated], tmp_path)["images"][0]["file_name"] == "photos/a.jpg"
        assert to_coco([annotated], tmp_path / "out")["images"][0]["file_name"] == "../photos/a.jpg"
        monkeypatch.chdir(tmp_path)
        assert to_coco([annotated])["images"][0]["file_name"] == "photos/a.jpg"

        def other_drive(*_):
            raise ValueError("path is on mount 'D:', start on mount 'C:'")

        monkeypatch.setattr(os.path, "relpath", other_drive)
        assert to_coco([annotated])["images"][0]["file_name"] == (tmp_path / "photos" / "a.jpg").as_posix()

    def test_given_categories(self):
        content = to_coco([image(np.ones((2, 2), bool))], categories=["bolt", "screw", "nut"])
        assert content["annotations"][0]["category_id"] == 3
        with pytest.raises(UnknownNameError, match="did you mean nuts"):
            to_coco([image(np.ones((2, 2), bool))], categories=["nuts"])


class TestLabelme:
    def test_as_supervision_reads_it(self, tmp_path):
        annotated = image(*blobs(2), path=tmp_path / "a.png")
        Image.new("RGB", annotated.size[::-1]).save(annotated.path)
        (tmp_path / "a.json").write_text(json.dumps(to_labelme(annotated, tmp_path, 0)))
        loaded = sv.DetectionDataset.from_labelme(str(tmp_path), str(tmp_path), force_masks=True)
        ((_, _, found),) = loaded
        assert [loaded.classes[i] for i in found.class_id] == ["nut", "bolt", "nut"]
        for theirs, ours in zip(found.mask, annotated.masks(), strict=True):
            assert iou(theirs, ours) > 0.999

    def test_as_labelme_draws_it(self):
        """labelme.utils.shape_to_mask draws a polygon so, outline and inside, by Pillow."""
        mask = blobs(3, 1)[0]
        drawn = np.zeros_like(mask)
        for shape in to_labelme(image(mask), None, 0)["shapes"]:
            canvas = Image.new("L", mask.shape[::-1])
            ImageDraw.Draw(canvas).polygon([tuple(point) for point in shape["points"]], outline=1, fill=1)
            drawn |= np.asarray(canvas).astype(bool)
        assert iou(drawn, mask) > 0.99

    @given(masks)
    @settings(deadline=None)
    def test_comes_back(self, mask):
        annotated = image(mask, np.ones_like(mask))
        content = json.loads(json.dumps(to_labelme(annotated, Path("out"), 0)))
        assert content["imagePath"] == "../photos/a.jpg"
        read = from_labelme(content, Path("out"))
        assert (read.path, read.size) == (Path("out/../photos/a.jpg"), annotated.size)
        wanted = [instance for instance in annotated.instances if instance.area]
        assert [(t.category, t.score) for t in read.instances] == [(t.category, t.score) for t in wanted]
        assert iou(read.masks()[-1], np.ones_like(mask)) == 1
        if mask.any():
            assert (read.masks()[0] >= mask).all()

    @pytest.mark.parametrize("corners", [[[8.6, 1.0], [2.0, 4.4]], [[2.0, 1.0], [8.6, 1.0], [8.6, 4.4], [2.0, 4.4]]])
    def test_what_people_draw(self, corners):
        """A rectangle of Windows' LabelMe, or as X-AnyLabeling has it, and two polygons of one group."""
        shapes = [
            {"label": "tray", "points": corners, "group_id": None, "shape_type": "rectangle"},
            {"label": "nut", "points": [[0, 0], [1, 0], [1, 1], [0, 1]], "group_id": 4, "shape_type": "polygon"},
            {"label": "nut", "points": [[5, 6], [6, 6], [6, 7], [5, 7]], "group_id": 4, "shape_type": "polygon"},
        ]
        content = {"shapes": shapes, "imagePath": "..\\photos\\a.jpg", "imageHeight": 10, "imageWidth": 12}
        read = from_labelme(content, Path("x"))
        tray, nut = read.masks()
        assert (read.path, [instance.category for instance in read.instances]) == (Path("x/../photos/a.jpg"), ["tray", "nut"])
        assert np.argwhere(tray).min(0).tolist() == [1, 2]
        assert np.argwhere(tray).max(0).tolist() == [4, 9]
        assert (tray.sum(), nut.sum()) == (4 * 8, 8)

    def test_shapes_without_an_area(self):
        content = {"shapes": [{"label": "a", "points": [[1, 2]], "shape_type": "point"}], "imageHeight": 9, "imageWidth": 9}
        with pytest.raises(InvalidInputError, match="a shape is a point"):
            from_labelme({**content, "imagePath": "a.jpg"})


class TestYolo:
    def test_as_supervision_reads_it(self, tmp_path):
        annotated = image(*blobs(4), path=tmp_path / "a.png")
        Image.new("RGB", annotated.size[::-1]).save(annotated.path)
        (tmp_path / "a.txt").write_text(to_yolo(annotated, ["nut", "bolt"], 0))
        (tmp_path / "data.yaml").write_text("names: [nut, bolt]\n")
        loaded = sv.DetectionDataset.from_yolo(str(tmp_path), str(tmp_path), str(tmp_path / "data.yaml"), force_masks=True)
        ((_, _, found),) = loaded
        assert found.class_id.tolist() == [0, 1, 0]
        for theirs, ours in zip(found.mask, annotated.masks(), strict=True):
            assert iou(theirs, ours) > 0.95, "parts are joined by lines of a pixel"

    @pytest.mark.parametrize("seed", range(5))
    def test_comes_back(self, seed):
        annotated = image(*blobs(seed))
        read = from_yolo(to_yolo(annotated, ["bolt", "nut"]), annotated.path, annotated.size, ["bolt", "nut"])
        assert [instance.category for instance in read.instances] == [instance.category for instance in annotated.instances]
        for again, mask in zip(read.masks(), annotated.masks(), strict=True):
            assert iou(again, mask) > 0.9

    def test_a_hole_stays_open(self):
        mask = np.ones((50, 60), bool)
        mask[10:30, 20:40] = False
        (read,) = from_yolo(to_yolo(image(mask), ["nut"], 0), Path("a.jpg"), (50, 60), ["nut"]).masks()
        assert np.array_equal(read, mask)

    @pytest.mark.parametrize("line", ["0 0.5 0.5 0.2 0.2", "-1 0 0 1 0 1 1", "0"])
    def test_what_is_no_polygon_is_refused(self, line):
        """A box, which is what YOLO's files for detection have; a class that does not count from 0."""
        with pytest.raises(InvalidInputError, match="YOLO file"):
            from_yolo(f"0 0 0 1 0 1 1\n\n{line}\n", Path("a.jpg"), (50, 60), ["nut"])
        assert len(from_yolo("0 0 0 1 0 1 1\n\n", Path("a.jpg"), (50, 60), ["nut"]).instances) == 1

    def test_a_byte_order_mark_is_no_part_of_the_class(self):
        (read,) = from_yolo("\ufeff0 0 0 1 0 1 1\r\n", Path("a.jpg"), (50, 60), ["nut"]).instances
        assert read.category == "nut"

    def test_an_empty_mask_has_no_line(self):
        assert to_yolo(image(np.zeros((5, 5), bool)), ["nut"]) == ""


class TestContours:
    @given(masks)
    @settings(deadline=None)
    def test_comes_back(self, mask):
        annotated = image(mask, ~mask)
        assert from_contours(json.loads(json.dumps(to_contours(annotated, None, 0)))) == annotated


class TestMask:
    def test_numbers_and_colours(self, tmp_path):
        """The small one is seen where they overlap."""
        large, small = np.zeros((2, 20, 30), bool)
        large[2:18, 2:20], small[5:9, 15:25] = True, True
        to_mask(image(small, large)).save(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as opened:
            assert np.array_equal(np.asarray(opened), np.where(small, 1, np.where(large, 2, 0)))
            assert np.asarray(opened.convert("RGB"))[6, 16].tolist() == [0, 158, 115]
            for read, seen in zip(from_mask(opened, Path("a.jpg")).masks(), (small, large & ~small), strict=True):
                assert np.array_equal(read, seen)

    def test_more_instances_than_a_byte_has(self, tmp_path):
        found = np.eye(300, dtype=bool)[:, None]  # each one pixel of a row
        instances = [Instance(mask) for mask in found]
        to_mask(AnnotatedImage(Path("a.jpg"), (1, 300), instances)).save(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            assert np.asarray(image).tolist() == [list(range(1, 301))]

    def test_no_numbers(self):
        with pytest.raises(InvalidInputError, match="image of numbers"):
            from_mask(Image.new("RGB", (3, 4)), Path("a.png"))


class TestSupervision:
    def test_detections(self):
        annotated = image(*blobs(6))
        found = to_detections(annotated)
        assert np.array_equal(found.mask, np.stack(annotated.masks()))
        assert found.confidence.tolist() == pytest.approx([0.9, 0.75, 0.5])
        assert found.class_id.tolist() == [1, 0, 1]
        assert found["class_name"].tolist() == ["nut", "bolt", "nut"]
        for box, mask in zip(found.xyxy, annotated.masks(), strict=True):
            ys, xs = np.nonzero(mask)
            assert box.tolist() == [xs.min(), ys.min(), xs.max(), ys.max()]
        sv.MaskAnnotator().annotate(np.zeros((*annotated.size, 3), np.uint8), found)

    def test_nothing(self):
        assert len(to_detections(AnnotatedImage(Path("a.jpg"), (3, 4), []))) == 0

    def test_without_it(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "supervision", None)
        with pytest.raises(MissingExtraError, match=r"groupmix-sam\[supervision\]"):
            to_detections(image(np.ones((3, 3), bool)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("write", "read"),
    [(lambda p: to_coco([p]), from_coco), (to_labelme, from_labelme), (to_contours, from_contours)],
)
@given(st.data())
@settings(deadline=None, max_examples=60)
def test_damaged_content_is_read_or_refused(write, read, data):
    """Any value anywhere in a good file is replaced by any other."""
    content = json.loads(json.dumps(write(image(np.ones((6, 7), bool), np.eye(6, 7, dtype=bool)))))
    at = content
    while isinstance(at, (dict, list)) and at:
        key = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.booleans()):
            at[key] = data.draw(json_values)
            break
        at = at[key]
    with contextlib.suppress(InvalidInputError):
        read(content)


@given(st.text(alphabet="0123456789.- nae\n", max_size=40))
@settings(deadline=None)
def test_any_yolo_is_read_or_refused(text):
    try:
        read = from_yolo(text, Path("a.jpg"), (4, 5), ["nut"])
    except InvalidInputError:
        return
    assert all(mask.shape == (4, 5) for mask in read.masks())


class TestInstance:
    @given(masks)
    @settings(deadline=None)
    def test_the_mask_comes_back_with_its_box_and_area(self, mask):
        instance = Instance(mask)
        rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        left, top, width, height = coco_mask.toBbox(rle).tolist()
        assert np.array_equal(instance.mask, mask)
        assert instance.mask.dtype == bool
        assert instance.box == (left, top, left + width, top + height)
        assert instance.area == coco_mask.area(rle)
        assert np.array_equal(instance.mask[instance.window], instance.crop)
        assert instance == Instance(mask.copy())
        assert instance != Instance(~mask)

    def test_what_it_keeps_is_the_bits_of_the_box(self):
        """Of a hundred masks of a photo of 24 megapixels, a hundredth of it each, 3 MB and not 2.4 GB."""
        mask = np.zeros((4000, 6000), dtype=bool)
        mask[100:500, 200:800] = True
        kept = sum(sys.getsizeof(value) for value in vars(Instance(mask)).values())
        assert kept < 400 * 600 / 8 + 1000

    def test_the_given_array_may_change(self):
        mask = np.ones((3, 4), dtype=bool)
        instance = Instance(mask)
        mask[:] = False
        instance.mask[:] = False
        assert instance.mask.all()

    @pytest.mark.parametrize("mask", [None, [[True]], np.zeros(4, bool), np.zeros((2, 2), np.uint8), {"size": [2, 2]}])
    def test_no_mask(self, mask):
        with pytest.raises(InvalidInputError, match="give an array of bool, H x W"):
            Instance(mask)
