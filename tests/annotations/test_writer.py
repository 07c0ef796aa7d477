"""The files of many images, from Python; tests/test_cli.py has the same by command."""

import io
import json
import sys
import weakref

import numpy as np
import pytest
from PIL import Image

from groupmix_sam.annotations import AnnotatedImage, AnnotationWriter, Instance, annotate, from_coco
from groupmix_sam.annotations.writer import FORMATS, leave_out_drawings
from groupmix_sam.errors import ImageReadError, InvalidInputError, MissingExtraError, SaveError, UnknownNameError
from groupmix_sam.images import name_images

MASK = np.zeros((6, 9), dtype=bool)
MASK[1:4, 2:7] = True


@pytest.fixture
def line(tmp_path):
    """A folder with two images, one below it."""
    (tmp_path / "line" / "two").mkdir(parents=True)
    for name in ("a.png", "two/b.png"):
        Image.new("RGB", MASK.shape[::-1], (200, 30, 30)).save(tmp_path / "line" / name)
    return tmp_path / "line"


def found(category="nut"):
    return lambda name, image: [Instance(MASK, 0.75, category)]


def write(line, output, *formats, categories=("nut",), **options):
    """Annotate all images of the folder; the last category is that of the instances."""
    images = name_images([line])
    with AnnotationWriter(output, formats, images, categories, **options) as writer:
        return list(annotate(images, found(categories[-1]), writer))


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_format_has_its_files(line, tmp_path):
    outcomes = write(line, tmp_path / "out", *FORMATS)
    each = {"_overlay.png", "_mask.png", "_contours.json", ".json", ".txt"}
    assert files(tmp_path / "out") == {f"{name}{end}" for name in ("a", "two/b") for end in each} | {
        "annotations.json",
        "classes.txt",
    }
    assert [(o.name, o.source.path, o.error) for o in outcomes] == [
        ("a.png", line / "a.png", ""),
        ("two/b.png", line / "two" / "b.png", ""),
    ]
    assert set(outcomes[0].files) == {str(tmp_path / "out" / f"a{end}") for end in each}
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "two" / "b_mask.png")) > 0, MASK)
    read = from_coco(json.loads((tmp_path / "out" / "annotations.json").read_text()), tmp_path / "out")
    assert [image.path.resolve() for image in read] == [line / "a.png", line / "two" / "b.png"]
    for image in read:
        assert [(i.category, i.score) for i in image.instances] == [("nut", 0.75)]
        assert np.array_equal(image.masks()[0], MASK)


def test_by_default_files_lie_in_the_working_directory(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(line, None, "mask")
    assert files(tmp_path) == {"line/a.png", "line/two/b.png", "a_mask.png", "two/b_mask.png"}


def test_a_stream_gets_the_bytes_of_the_file(line, tmp_path):
    stream = io.BytesIO()
    (outcome,) = write(line / "a.png", stream, "yolo")
    write(line / "a.png", tmp_path / "a.txt", "yolo")
    assert stream.getvalue() == (tmp_path / "a.txt").read_bytes() != b""
    assert outcome.files == []


def test_what_cannot_be_read_is_skipped_unless_it_is_the_only_image(line, tmp_path):
    (line / "cut.png").write_bytes((line / "a.png").read_bytes()[:40])
    good, cut, other = write(line, tmp_path / "c.json", "coco")
    assert (good.error, other.error, cut.annotated, cut.files) == ("", "", None, [])
    assert "cannot be read as an image" in cut.error
    assert len(json.loads((tmp_path / "c.json").read_text())["images"]) == 2
    with pytest.raises(ImageReadError):
        write(line / "cut.png", tmp_path, "mask")


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_an_error_keeps_what_is_done(line, tmp_path, error):
    images = name_images([line])
    answers = iter([[], error])

    def find(*_):
        answer = next(answers)
        if answer is error:
            raise error
        return answer

    with pytest.raises(error), AnnotationWriter(tmp_path / "c.json", ["coco"], images, []) as writer:
        list(annotate(images, find, writer))
    assert [image["file_name"] for image in json.loads((tmp_path / "c.json").read_text())["images"]] == ["line/a.png"]


@pytest.mark.parametrize(
    ("output", "formats", "error", "message"),
    [
        ("out", ["masks"], UnknownNameError, "did you mean mask"),
        ("a.png", ["mask"], InvalidInputError, "a.png is one file: give a folder"),
        ("c.png", ["coco"], InvalidInputError, "a file that ends in .json"),
        ("no/c.json", ["coco"], InvalidInputError, "in a folder that exists"),
        (io.BytesIO(), ["coco", "mask"], InvalidInputError, "takes one file"),
        (io.BytesIO(), ["mask"], InvalidInputError, "takes one file"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(line, tmp_path, monkeypatch, output, formats, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        AnnotationWriter(output, formats, name_images([line]), [])


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf")])
def test_a_tolerance_is_0_or_more(tmp_path, tolerance):
    with pytest.raises(InvalidInputError, match="give 0 or more pixels"):
        AnnotationWriter(tmp_path, ["yolo"], {}, [], tolerance=tolerance)


def test_two_images_for_one_file(line):
    (line / "a.jpg").write_bytes((line / "a.png").read_bytes())
    with pytest.raises(InvalidInputError, match=r"a_mask\.png would belong to both a\.jpg and a\.png"):
        AnnotationWriter("out", ["mask"], name_images([line]), [])
    (line / "a.jpg").rename(line / "annotations.png")
    with pytest.raises(InvalidInputError, match=r"annotations\.json would be COCO's file and LabelMe's"):
        AnnotationWriter("out", ["coco", "labelme"], name_images([line]), [])


def test_a_folder_that_cannot_be_made(line):
    (line / "file").touch()
    with pytest.raises(SaveError, match="cannot be made"):
        write(line / "a.png", line / "file" / "sub", "mask")


@pytest.mark.parametrize(("kind", "name"), [("labelme", "a.json"), ("yolo", "a.txt"), ("coco", "annotations.json")])
def test_corrections_are_not_overwritten(line, tmp_path, kind, name):
    """Before an image is looked at, unless that is wished; what is no annotation is written again."""
    out = tmp_path / "out"
    write(line, out, kind, "overlay")
    written = (out / name).read_bytes()
    (out / name).write_text("corrected")
    (out / "a_overlay.png").unlink()
    more = "" if kind == "coco" else " and 1 more"
    with pytest.raises(InvalidInputError, match=f"{name}{more} would be overwritten, .* set overwrite"):
        write(line, out, kind, "overlay")
    assert ((out / name).read_text(), (out / "a_overlay.png").exists()) == ("corrected", False)
    write(line, out, kind, "overlay", overwrite=True)
    assert (out / name).read_bytes() == written
    write(line, out, "overlay")
    assert (out / "a_overlay.png").exists()


def test_an_image_is_not_overwritten(line, monkeypatch):
    """By whatever path it is named; `overwrite` is about annotations."""
    monkeypatch.chdir(line)
    image = (line / "a.png").read_bytes()
    (line / "link.png").symlink_to("a.png")
    (line / "two" / "a_mask.png").write_bytes(image)
    for output in ("a.png", "two/../a.png", "link.png"):
        with pytest.raises(InvalidInputError, match=f"{output} is one of the images"):
            write(line / "a.png", output, "mask", overwrite=True)
    with pytest.raises(InvalidInputError, match=r"a_mask\.png is one of the images"):
        AnnotationWriter("two", ["mask"], name_images(["a.png", "two/a_mask.png"]), [])
    assert (line / "a.png").read_bytes() == (line / "two" / "a_mask.png").read_bytes() == image


def test_drawings_of_other_images_are_left_out(line):
    """An overlay alone is an image like any other."""
    for name in ("a_overlay.png", "two/b_mask.png", "c_mask.png"):
        (line / name).write_bytes((line / "a.png").read_bytes())
    assert list(leave_out_drawings(name_images([line]))) == ["a.png", "c_mask.png", "two/b.png"]


def test_yolo_classes_keep_their_numbers(line, tmp_path):
    """Names that come later are added behind, so that labels that were written stay true."""
    image = line / "a.png"
    write(image, tmp_path, "yolo", categories=["screw"])
    write(image, tmp_path, "yolo", categories=["screw", "nut"], overwrite=True)
    assert (tmp_path / "classes.txt").read_text() == "screw\nnut\n"
    assert (tmp_path / "a.txt").read_text().split()[0] == "1"
    write(image, tmp_path, "yolo", categories=["screw"], overwrite=True)
    assert (tmp_path / "classes.txt").read_text() == "screw\nnut\n"
    assert (tmp_path / "a.txt").read_text().split()[0] == "0"
    (tmp_path / "classes.txt").write_bytes(b"\xff")
    with pytest.raises(InvalidInputError, match="fix it, or give another output"):
        write(image, tmp_path, "yolo", overwrite=True)


def test_yolo_classes_of_another_editor_are_kept_as_they_are(line, tmp_path):
    """With a byte-order mark and CRLF, as on Windows: cup is 0 and spoon is 1, and the file is not rewritten."""
    content = b"\xef\xbb\xbfcup\r\nspoon\r\n"
    (tmp_path / "classes.txt").write_bytes(content)
    write(line / "a.png", tmp_path, "yolo", categories=["cup", "spoon"])
    assert (tmp_path / "a.txt").read_text().split()[0] == "1"
    assert (tmp_path / "classes.txt").read_bytes() == content
    write(line / "a.png", tmp_path, "yolo", categories=["cup", "fork"], overwrite=True)
    assert (tmp_path / "classes.txt").read_text(encoding="utf-8") == "cup\nspoon\nfork\n"


def test_yolo_classes_lie_there_before_the_first_label(line, tmp_path):
    """A run that is killed after its first image leaves labels that mean the same to the next one."""
    images = name_images([line])
    writer = AnnotationWriter(tmp_path, ["yolo"], images, ["screw"])  # never closed
    next(annotate(images, found("screw"), writer))
    assert files(tmp_path) >= {"a.txt", "classes.txt"}
    write(line / "two", tmp_path, "yolo", categories=["nut"])
    assert (tmp_path / "classes.txt").read_text() == "screw\nnut\n"
    assert ((tmp_path / "a.txt").read_text()[0], (tmp_path / "b.txt").read_text()[0]) == ("0", "1")


def test_closing_twice_writes_once(line, tmp_path):
    images = name_images([line / "a.png"])
    writer = AnnotationWriter(tmp_path, ["coco"], images, ["nut"])
    writer.write("a.png", images["a.png"].decode(), AnnotatedImage(line / "a.png", MASK.shape, found()("", None)))
    assert writer.close() == [str(tmp_path / "annotations.json")]
    (tmp_path / "annotations.json").unlink()
    assert writer.close() == []
    assert not (tmp_path / "annotations.json").exists()


def test_masks_of_images_that_are_done_are_not_kept(line, tmp_path):
    """COCO's file covers all images and is written last; until then it holds run lengths."""
    images = name_images([line])
    writer = AnnotationWriter(tmp_path, ["coco"], images, ["nut"])
    annotated = [o.annotated for o in annotate(images, found(), writer)]
    references = [weakref.ref(image.instances[0]) for image in annotated]
    del annotated
    assert [reference() for reference in references] == [None, None]


def test_no_format_and_no_opencv_are_refused_before_any_work(line, tmp_path, monkeypatch):
    with pytest.raises(InvalidInputError, match="there is no format"):
        AnnotationWriter(tmp_path, [], {}, [])
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"groupmix-sam\[stream\]"):
        AnnotationWriter(tmp_path, ["labelme"], {}, [])
    AnnotationWriter(tmp_path, ["coco"], {}, [])  # which needs none
