"""Annotation files, judged by those who read them: pycocotools, OpenCV, Pillow, supervision."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from groupmix_sam.annotations import decode_rle, encode_rle
from groupmix_sam.errors import InvalidInputError

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40))


def by_pycocotools(rle):
    with warnings.catch_warnings():  # pycocotools has not heard of NumPy 2's copy=
        warnings.simplefilter("ignore", DeprecationWarning)
        return coco_mask.decode(rle).astype(bool)


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
        with pytest.raises(InvalidInputError, match="give an H x W array of bool"):
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
