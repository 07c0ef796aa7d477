import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groupmix_sam.inference.mask_resize import neighbours, resize_blocks, resize_mask


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), mean=st.floats(-4, 4))
def test_a_mask_is_where_the_resized_logits_exceed_the_threshold(seed, mean):
    """Of few logits above it, many, or none; of an image that fills all of them, or a part."""
    rng = np.random.default_rng(seed)
    low = rng.normal(mean, 1, rng.integers(2, 40, 2)).astype(np.float32)
    size = tuple(rng.integers(1, 300, 2))
    extents = rng.uniform(0.5, low.shape)
    sides = [neighbours(*side) for side in zip(size, low.shape, extents, strict=True)]
    out = rng.random(size) > 0.5
    resize_mask(low, *sides, 0.5, out)
    assert np.array_equal(out, np.concatenate([part for _, part in resize_blocks(low, *sides)]) > 0.5)


@pytest.mark.parametrize("row", [0, 1, 6, 7])
def test_one_logit_above(row):
    """By hand: a tent of a height of 1 over -1 exceeds 0 by less than half a pixel to each side."""
    low = np.full((8, 8), -1, dtype=np.float32)
    low[row, 3] = 1
    out = np.ones((80, 80), dtype=bool)
    resize_mask(low, neighbours(80, 8, 8), neighbours(80, 8, 8), 0.0, out)
    assert out[10 * row + 4 : 10 * row + 6, 34:36].all()
    assert not np.delete(out, range(10 * row, 10 * row + 10), axis=0).any()
