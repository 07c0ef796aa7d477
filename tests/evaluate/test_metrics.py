import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFilter
from pycocotools import mask as rle

from groupmix_sam.errors import InvalidInputError, MissingExtraError
from groupmix_sam.evaluate import metrics
from groupmix_sam.masks import box_baseline

masks = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(lambda size: arrays(bool, size))


def eroded(mask, times):
    """Erode by 3 x 3 again and again; what lies outside the image is no mask."""
    image = Image.fromarray(np.pad(mask, times + 1).astype(np.uint8))
    for _ in range(times):
        image = image.filter(ImageFilter.MinFilter(3))
    return np.asarray(image, dtype=bool)[times + 1 : -times - 1, times + 1 : -times - 1]


@given(st.data())
def test_iou_is_pycocotools(data):
    a = data.draw(masks)
    b = data.draw(arrays(bool, a.shape))
    encoded = [rle.encode(np.asfortranarray(m, dtype=np.uint8)) for m in (a, b)]
    expected = rle.iou(encoded[:1], encoded[1:], [0])[0, 0] if (a | b).any() else 0
    assert metrics.iou(a, b) == pytest.approx(expected)


@given(masks, st.integers(1, 4))
def test_boundary_is_what_erosion_takes_away(mask, width):
    assert np.array_equal(metrics.boundary(mask, width), mask & ~eroded(mask, width))


def test_boundary_iou_by_hand():
    """Squares of 40 and of 30 in an image of 60 x 80: the diagonal is 100, rims of 2 are 304 and 224 pixels."""
    large, small, moved = (np.zeros((60, 80), dtype=bool) for _ in range(3))
    large[10:50, 10:50] = True
    small[15:45, 15:45] = True
    moved[11:51, 10:50] = True
    assert metrics.boundary(large, 2).sum() == 304
    assert metrics.boundary_iou(large, large) == 1
    assert metrics.boundary_iou(large, small) == 0
    # Common are a row of 40 at the top, of 36 + 4 at the bottom, and 37 + 37 rows of 2 at the sides less what was counted.
    common = 40 + 40 + 2 * 2 * 37
    assert metrics.boundary_iou(large, moved) == pytest.approx(common / (2 * 304 - common))


@given(masks.filter(np.any))
def test_innermost_pixel_is_in_what_is_left_last(mask):
    times = 0
    while eroded(mask, times + 1).any():
        times += 1
    ys, xs = np.nonzero(eroded(mask, times) if times else mask)
    middle = len(xs) // 2
    assert metrics.innermost_pixel(mask) == (xs[middle], ys[middle])


def test_innermost_pixel_by_hand():
    """The middle of a 7 x 7 square, whatever thin line leaves it, even along the image's border."""
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:12, 10:17] = True
    mask[8, :] = True
    assert metrics.innermost_pixel(mask) == (13, 8)
    assert metrics.innermost_pixel(np.eye(1, 1, dtype=bool)) == (0, 0)


@given(masks.filter(np.any), st.integers(0, 99))
def test_random_pixel_is_in_the_mask(mask, seed):
    x, y = metrics.random_pixel(mask, np.random.default_rng(seed))
    assert mask[y, x]


def test_no_pixel_to_point_at():
    with pytest.raises(InvalidInputError, match="no pixel to point at"):
        metrics.innermost_pixel(np.zeros((4, 4), dtype=bool))


def test_filled_and_tight_box():
    """A box of 4 x 3 over a mask of 2 x 3 that lies in it; a box without area is one pixel."""
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:4, 2:4] = True
    filled = metrics.box_baseline((6, 8), np.array([1.6, 1.0, 6.0, 4.2]))
    assert filled.sum() == 12
    assert metrics.iou(mask, filled) == pytest.approx(6 / 12)
    assert metrics.box_baseline((6, 8), np.array([3, 2, 3, 2])).sum() == 1
    assert metrics.box_baseline((6, 8), np.array([-5, -5, 2, 2])).sum() == 4
    assert metrics.tight_box(mask).tolist() == [2, 1, 4, 4]
    assert metrics.tight_box(np.zeros((6, 8), dtype=bool)).tolist() == [0, 0, 0, 0]


def test_next_click_by_hand():
    """9 x 9 missed beats 5 x 5 too much, and then the other way round; a clicked pixel is not clicked again."""
    truth, mask = np.zeros((30, 40), dtype=bool), np.zeros((30, 40), dtype=bool)
    truth[2:11, 3:12] = True
    mask[20:25, 30:35] = True
    assert metrics.next_click(truth, mask, []) == (7, 6, 1)
    assert metrics.next_click(truth, mask | truth, []) == (32, 22, 0)
    assert metrics.next_click(truth, mask | truth, [(32, 22)]) != (32, 22, 0)
    assert metrics.next_click(truth, truth, []) is None


def test_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.ndimage", None)
    monkeypatch.delitem(sys.modules, "groupmix_sam.evaluate.metrics")
    with pytest.raises(MissingExtraError, match=r"pip install 'groupmix-sam\[eval\]'"):
        from groupmix_sam.masks import mask_iou  # noqa: F401


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        ([1, 2, 4, 5], 9),
        ([1.4, 2.4, 1.4, 2.4], 1),
        ([-3, -3, 2, 2], 4),
        ([8, 8, 50, 50], 4),
        ([-9, -9, -2, -2], 0),
        ([-9, 2, -2, 5], 0),
        ([2, -9, 5, -2], 0),
        ([20, 2, 30, 5], 0),
        ([0, 0, 10, 10], 100),
    ],
)
def test_a_box_covers_what_lies_in_the_image(box, pixels):
    assert box_baseline((10, 10), np.array(box, dtype=float)).sum() == pixels
