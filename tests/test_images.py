import io
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from groupmix_sam.errors import ImageReadError, InvalidInputError
from groupmix_sam.images import as_rgb, decode_image, exif_orientation, read_image
from groupmix_sam.preprocess import check_aspect
from groupmix_sam.prompts import as_box, as_points
from groupmix_sam.visualize import draw_masks

RED = np.full((4, 6, 3), (200, 10, 30), dtype=np.uint8)


class TestReadImage:
    @pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
    def test_lossless_formats(self, tmp_path, suffix):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(RED).save(path, **({"lossless": True} if suffix == "webp" else {}))
        assert np.array_equal(read_image(path), RED)

    def test_gray_alpha_and_palette_become_rgb(self, tmp_path):
        Image.fromarray(np.full((2, 3), 7, np.uint8)).save(tmp_path / "gray.png")
        Image.fromarray(np.dstack([RED, np.zeros((4, 6), np.uint8)])).save(tmp_path / "alpha.png")
        Image.fromarray(RED).quantize(4).save(tmp_path / "palette.png")
        assert np.array_equal(read_image(tmp_path / "gray.png"), np.full((2, 3, 3), 7))
        assert np.array_equal(read_image(tmp_path / "alpha.png"), RED)
        assert np.array_equal(read_image(tmp_path / "palette.png"), RED)

    def test_16_bits_are_scaled(self, tmp_path):
        Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
        assert read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 100, 255]

    @pytest.mark.parametrize(("highest", "warned"), [(0, False), (1023, True), (4095, True), (4096, False)])
    def test_12_bits_in_16_are_told(self, tmp_path, recwarn, highest, warned):
        Image.fromarray(np.array([[0, highest]], dtype=np.uint16)).save(tmp_path / "deep.png")
        assert read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, round(highest / 257)]
        messages = [str(warning.message) for warning in recwarn]
        assert len(messages) == warned
        assert all(f"deep.png has 16 bits and no value above {highest}, " in message for message in messages)

    @pytest.mark.parametrize("values", [np.float32([[0.5, np.nan]]), np.int32([[70000, -1]])])
    def test_deeper_than_16_bits_is_refused(self, tmp_path, values):
        Image.fromarray(values).save(tmp_path / "deep.tiff")
        with pytest.raises(ImageReadError, match="not 8 or 16 bits"):
            read_image(tmp_path / "deep.tiff")

    @pytest.mark.parametrize("path", [3, None, b"x", [1]])
    def test_no_path(self, path):
        with pytest.raises(InvalidInputError, match="give a path"):
            read_image(path)

    def test_exif_turns_it_upright(self, tmp_path):
        image = Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3))
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
        image.save(tmp_path / "a.png", exif=exif)
        assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(np.asarray(image), -1))

    def test_not_there(self, tmp_path):
        with pytest.raises(ImageReadError, match=r"there is no image .*x\.png: check the path"):
            read_image(tmp_path / "x.png")
        with pytest.raises(OSError, match="cannot be read"):
            read_image(tmp_path)

    def test_no_image_or_cut_short(self, tmp_path):
        (tmp_path / "text.jpg").write_text("no image")
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
        (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
        (tmp_path / "empty.png").touch()
        for name in ("text.jpg", "cut.png", "empty.png"):
            with pytest.raises(ImageReadError, match=f"{name} cannot be read as an image"):
                read_image(tmp_path / name)

    def test_a_bomb(self, tmp_path, monkeypatch):
        Image.fromarray(RED).save(tmp_path / "a.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
        with pytest.raises(ImageReadError, match=r"a\.png has 6 x 4 pixels, more than 2e-05 million: scale it down first"):
            read_image(tmp_path / "a.png")


def with_orientation(path, orientation):
    image = Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return np.asarray(image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(tmp_path, orientation):
    """What each of them is, by the Exif standard's table: where the stored row 0 and column 0 are seen."""
    stored = with_orientation(tmp_path / "a.png", orientation)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(stored),
    }[orientation]
    assert exif_orientation(tmp_path / "a.png") == orientation
    assert np.array_equal(read_image(tmp_path / "a.png"), upright)
    assert np.array_equal(read_image(tmp_path / "a.png", upright=False), stored)


def test_no_orientation(tmp_path):
    Image.fromarray(RED).save(tmp_path / "a.png")
    with_orientation(tmp_path / "b.png", 99)
    assert (exif_orientation(tmp_path / "a.png"), exif_orientation(tmp_path / "b.png")) == (1, 1)
    (tmp_path / "c.png").write_text("no image")
    with pytest.raises(ImageReadError, match=r"c\.png cannot be read as an image"):
        exif_orientation(tmp_path / "c.png")


def test_reading_touches_no_filter_of_warnings(tmp_path, monkeypatch):
    """They are of all threads: two that read at once would leave the one's filters behind."""
    Image.fromarray(RED).save(tmp_path / "a.png")
    seen, transpose = [], ImageOps.exif_transpose
    monkeypatch.setattr(ImageOps, "exif_transpose", lambda image: seen.append(list(warnings.filters)) or transpose(image))
    before = list(warnings.filters)
    read_image(tmp_path / "a.png")
    assert seen == [before]
    assert warnings.filters == before


def test_many_threads_read_what_one_reads(tmp_path):
    images = [np.random.default_rng(i).integers(0, 255, (40, 50, 3), dtype=np.uint8) for i in range(8)]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        for i, found in enumerate(pool.map(read_image, [tmp_path / f"{i % 8}.png" for i in range(64)])):
            assert np.array_equal(found, images[i % 8])
    assert warnings.filters == before


def test_a_palette_with_transparency_of_many_colours(tmp_path):
    image = Image.fromarray(RED).quantize(4)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    assert np.array_equal(read_image(tmp_path / "a.png"), RED)


def test_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="needs groupmix-sam[heic]")
    heif.from_pillow(Image.fromarray(RED.repeat(20, 0).repeat(20, 1))).save(tmp_path / "a.heic", quality=100)
    assert read_image(tmp_path / "a.heic")[40, 60].tolist() == pytest.approx([200, 10, 30], abs=4)


def test_heic_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageReadError, match=r"photo is HEIC: .*groupmix-sam\[heic\]"):
        decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), "photo")


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4), (1, 1), (50, 20000, 3)])
def test_as_rgb_keeps_the_values(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    rgb = as_rgb(image)
    assert rgb.shape == (*shape[:2], 3)
    for c in range(3):
        assert np.array_equal(rgb[..., c], image if len(shape) == 2 else image[..., min(c, shape[2] - 1)])


@pytest.mark.parametrize(
    ("image", "match"),
    [
        ([[1, 2]], "is a list"),
        (None, "is a NoneType"),
        (np.zeros((4, 4, 3)), "dtype float64"),
        (np.full((4, 4, 3), np.nan, np.float32), "dtype float32"),
        (np.zeros((0, 4, 3), np.uint8), "no pixel"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
    ],
)
def test_as_rgb_refuses(image, match):
    with pytest.raises(InvalidInputError, match=match):
        as_rgb(image)


@given(st.integers(1, 3000), st.integers(1, 3000), st.data())
@settings(max_examples=50, deadline=None)
def test_points_inside_come_through_and_points_outside_do_not(height, width, data):
    x = data.draw(st.integers(-50, width + 50))
    y = data.draw(st.integers(-50, height + 50))
    if 0 <= x < width and 0 <= y < height:
        points, labels = as_points([(x, y)], None, (height, width))
        assert points.tolist() == [[x, y]]
        assert labels.tolist() == [1]
    else:
        with pytest.raises(InvalidInputError, match=f"outside the image of {width} x {height}"):
            as_points([(x, y)], None, (height, width))


@pytest.mark.parametrize(
    ("points", "labels", "match"),
    [
        ([], None, "shape"),
        ([1, 2], None, "shape"),
        ([[1, 2, 3]], None, "shape"),
        ([[float("nan"), 2]], None, "not finite"),
        ([["a", 2]], None, "give numbers"),
        ([[1, 2]], [2], "1 foreground or 0 background"),
        ([[1, 2]], [1, 0], "for 1 points"),
    ],
)
def test_points_refused(points, labels, match):
    with pytest.raises(InvalidInputError, match=match):
        as_points(points, labels, (10, 10))


@given(st.lists(st.integers(-20, 120), min_size=4, max_size=4))
@settings(max_examples=100, deadline=None)
def test_boxes(box):
    left, top, right, bottom = box
    if left < right and top < bottom and right > 0 and bottom > 0 and left < 100 and top < 80:
        assert as_box(box, (80, 100)).tolist() == box
    else:
        with pytest.raises(InvalidInputError, match=r"reversed or has no area|outside the image"):
            as_box(box, (80, 100))


@pytest.mark.parametrize(
    ("box", "match"), [([1, 2, 3], "four numbers"), ([0, 0, float("inf"), 5], "not finite"), ("a", "give numbers")]
)
def test_boxes_refused(box, match):
    with pytest.raises(InvalidInputError, match=match):
        as_box(box, (80, 100))


def test_drawing_by_hand():
    """Inside a mask the image is mixed half and half with the first colour; its rim has that colour; the rest stays."""
    image = np.full((9, 9, 3), 100, dtype=np.uint8)
    mask = np.zeros((9, 9), dtype=bool)
    mask[2:7, 2:7] = True
    out = np.asarray(draw_masks(image, [mask]))
    assert out[4, 4].tolist() == [50, 129, 107]
    assert out[2, 4].tolist() == [0, 158, 115]
    assert out[0, 0].tolist() == [100, 100, 100]
    assert image[4, 4].tolist() == [100, 100, 100]


@pytest.mark.parametrize("mask", [np.ones((4, 6), np.uint8), np.ones((6, 4), bool), np.ones((4, 6)), [[True]]])
def test_masks_refused(mask):
    with pytest.raises(InvalidInputError, match=r"give an array of bool, \(4, 6\)"):
        draw_masks(RED, [mask])


@pytest.mark.parametrize(("size", "fits"), [((1, 1), True), ((50, 20000), True), ((1, 2048), True), ((1, 2049), False)])
def test_aspect(size, fits):
    """One pixel is left of a side that is 2048 times shorter, none of a shorter one."""
    for shape in (size, size[::-1]):
        if fits:
            check_aspect(shape, 1024)
        else:
            with pytest.raises(InvalidInputError, match="too narrow"):
                check_aspect(shape, 1024)


def test_prompts_are_drawn():
    image = np.zeros((60, 60, 3), dtype=np.uint8)
    out = np.asarray(
        draw_masks(
            image, [], points=np.array([[30.0, 30.0], [45.0, 45.0]]), labels=np.array([1, 0]), box=np.array([5.0, 5, 55, 55])
        )
    )
    assert out[30, 30].tolist() == [40, 200, 40]
    assert out[45, 45].tolist() == [220, 40, 40]
    assert out[5, 20].tolist() == [255, 255, 255]


def test_a_limit_of_pixels_is_checked_before_decoding():
    file = io.BytesIO()
    Image.new("L", (30, 20)).save(file, "PNG")
    cut = file.getvalue()[:60]  # the header is whole, the pixels are not
    with pytest.raises(ImageReadError, match=r"^photo has 30 x 20 pixels, more than 0.0005 million: scale it down first\.$"):
        decode_image(cut, "photo", max_pixels=500)
    assert decode_image(file.getvalue(), "photo", max_pixels=600).shape == (20, 30, 3)


def test_postscript_starts_no_other_program(monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **kwargs: pytest.fail("Ghostscript was started"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n%%EndComments\nshowpage\n"
    with pytest.raises(ImageReadError, match="convert it to PNG or JPEG"):
        decode_image(eps, "photo.jpg")


def test_what_is_no_image_is_said_without_where_it_lies_in_memory():
    with pytest.raises(ImageReadError, match=r"^photo cannot be read as an image: convert it to PNG or JPEG\.$"):
        decode_image(b"hello", "photo")
