"""examples/auto_label.py, run as a person would; what it writes is read by supervision."""

import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision as sv
from PIL import Image

from groupmix_sam.errors import InvalidInputError
from groupmix_sam.images import ImageFile

EXAMPLES = Path(__file__).parents[1] / "examples"


def label(monkeypatch, source, output, *more):
    arguments = [
        str(source),
        "--output",
        str(output),
        "--image-size",
        "256",
        "--points-per-side",
        "3",
        "--category",
        "part",
        *more,
    ]
    monkeypatch.setattr(sys, "argv", ["auto_label.py", *arguments])
    runpy.run_path(str(EXAMPLES / "auto_label.py"), run_name="__main__")
    coco = sv.DetectionDataset.from_coco(str(output), str(output / "annotations.json"), force_masks=True)
    (output / "annotations.json").rename(output.parent / "annotations.json")
    return coco, sv.DetectionDataset.from_labelme(str(output), str(output), force_masks=True)


def test_a_image(monkeypatch, tmp_path):
    coco, labelme = label(
        monkeypatch, EXAMPLES / "coffee.jpg", tmp_path / "out", "--pred-iou-thresh", "0.6", "--stability-score-thresh", "0.6"
    )
    assert np.array_equal(Image.open(tmp_path / "out" / "coffee.png"), Image.open(EXAMPLES / "coffee.jpg"))
    ((_, _, masks),) = coco
    ((_, _, polygons),) = labelme
    assert coco.classes == labelme.classes == ["part"]
    assert len(masks) == len(polygons) > 0
    for mask, polygon in zip(masks.mask, polygons.mask, strict=True):
        assert (mask & polygon).sum() / (mask | polygon).sum() > 0.9


def test_corrections_are_not_written_over(monkeypatch, tmp_path, capsys):
    (tmp_path / "coffee.json").write_text("corrected")
    with pytest.raises(SystemExit):
        label(monkeypatch, EXAMPLES / "coffee.jpg", tmp_path)
    assert "has labels already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["coffee.json"]
    assert (tmp_path / "coffee.json").read_text() == "corrected"


def test_two_of_one_name_and_the_source_itself_are_refused(monkeypatch, tmp_path, capsys):
    for name in ("a.png", "a.bmp"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    with pytest.raises(InvalidInputError, match=r"a\.bmp and .*a\.png would both be a\.png"):
        label(monkeypatch, tmp_path, tmp_path / "out")
    with pytest.raises(SystemExit):
        label(monkeypatch, tmp_path, tmp_path)
    assert "would be written over" in capsys.readouterr().err


def test_a_broken_image_is_left_out_and_what_is_done_is_kept(monkeypatch, tmp_path, capsys):
    for name in ("a", "c"):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    label(monkeypatch, tmp_path, tmp_path / "out")
    assert [path.name for path in sorted((tmp_path / "out").glob("*.png"))] == ["a.png", "c.png"]
    assert "skipped: " in capsys.readouterr().out
    decode = ImageFile.decode
    monkeypatch.setattr(ImageFile, "decode", lambda self: 1 / 0 if self.path.name == "c.png" else decode(self))
    with pytest.raises(ZeroDivisionError):
        label(monkeypatch, tmp_path, tmp_path / "more")
    images = json.loads((tmp_path / "more" / "annotations.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["a.png"]


def test_a_video(monkeypatch, tmp_path, capsys):
    """Frames 0 and 2 of three, under their numbers."""
    writer = cv2.VideoWriter(str(tmp_path / "line.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (120, 90))
    for gray in (60, 120, 180):
        writer.write(np.full((90, 120, 3), gray, np.uint8))
    writer.release()
    label(monkeypatch, tmp_path / "line.avi", tmp_path / "out", "--every", "2")
    assert [path.name for path in sorted((tmp_path / "out").glob("*.png"))] == ["line_000000.png", "line_000002.png"]
    for name, gray in (("line_000000", 60), ("line_000002", 180)):
        assert np.asarray(Image.open(tmp_path / "out" / f"{name}.png")).mean() == pytest.approx(gray, abs=4)
    assert "2 x image and LabelMe file" in capsys.readouterr().out
