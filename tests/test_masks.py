"""The IoU and the boxes of masks; tests/annotations has run lengths and polygons."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from groupmix_sam.masks import box_baseline, mask_iou, tight_box

masks = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(lambda size: arrays(bool, size))


@given(st.data())
def test_iou_is_pycocotools(data):
    """But for two empty masks, which are the same."""
    a = data.draw(masks)
    b = data.draw(arrays(bool, a.shape))
    encoded = [coco_mask.encode(np.asfortranarray(m, dtype=np.uint8)) for m in (a, b)]
    expected = coco_mask.iou(encoded[:1], encoded[1:], [0])[0, 0] if (a | b).any() else 1
    assert mask_iou(a, b) == pytest.approx(expected)


def test_a_box_and_the_tight_box():
    """A box of 4 x 3 over a mask of 2 x 3 that lies in it."""
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:4, 2:4] = True
    box = box_baseline((6, 8), np.array([1.6, 1.0, 6.0, 4.2]))
    assert box.sum() == 12
    assert mask_iou(mask, box) == pytest.approx(6 / 12)
    assert tight_box(mask).tolist() == [2, 1, 4, 4]
    assert tight_box(np.zeros((6, 8), dtype=bool)).tolist() == [0, 0, 0, 0]


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
