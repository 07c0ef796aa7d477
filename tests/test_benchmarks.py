"""What the benchmarks calculate, by hand; that they run is seen where their output is quoted."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from groupmix_sam.errors import MissingExtraError

ACCURACY = str(Path(__file__).parents[1] / "benchmarks" / "accuracy.py")


@pytest.fixture(scope="module")
def accuracy():
    return runpy.run_path(ACCURACY)


def test_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'groupmix-sam\[eval\]'"):
        runpy.run_path(ACCURACY)


def test_innermost_pixel(accuracy):
    """The middle of a 7 x 7 square, whatever thin line leaves it, even along the picture's border."""
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:12, 10:17] = True
    mask[8, :] = True
    assert accuracy["innermost_pixel"](mask) == (13, 8)
    assert accuracy["innermost_pixel"](np.eye(1, 1, dtype=bool)) == (0, 0)


def test_iou_and_filled_box(accuracy):
    """A box of 4 x 3 over a mask of 2 x 3 that lies in it."""
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:4, 2:4] = True
    filled = accuracy["filled_box"](mask.shape, np.array([1.6, 1.0, 6.0, 4.2]))
    assert filled.sum() == 12
    assert accuracy["iou"](mask, filled) == pytest.approx(6 / 12)
    assert accuracy["iou"](mask, ~mask) == 0
