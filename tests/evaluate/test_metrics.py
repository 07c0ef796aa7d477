import sys
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFilter

from groupmix_sam.errors import InvalidInputError, MissingExtraError
from groupmix_sam.evaluate import metrics

masks = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(lambda size: arrays(bool, size))


def eroded(mask, times):
    """Erode by 3 x 3 again and again; what lies outside the image is no mask."""
    image = Image.fromarray(np.pad(mask, times + 1).astype(np.uint8))
    for _ in range(times):
        image = image.filter(ImageFilter.MinFilter(3))
    return np.asarray(image, dtype=bool)[times + 1 : -times - 1, times + 1 : -times - 1]


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
    with pytest.raises(InvalidInputError, match="no pixel to click on"):
        metrics.innermost_pixel(np.zeros((4, 4), dtype=bool))


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
        import_module("groupmix_sam.evaluate.metrics")
