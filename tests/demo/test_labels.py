import json

import numpy as np
import pytest

from groupmix_sam.annotations import read_annotations
from groupmix_sam.demo.labels import Labels
from groupmix_sam.errors import InvalidInputError
from groupmix_sam.images import find_images, read_image


def photo(seed):
    return np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)


def block(x0, y0, x1, y1):
    mask = np.zeros((40, 60), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_labels_are_what_adapt_reads(tmp_path):
    """Images lie in their order, a corrected mask replaces the earlier one, and another page goes on with them."""
    labels = Labels(tmp_path / "mine")
    assert labels.count() == (0, 0)
    labels.save(photo(0), block(10, 10, 30, 30))
    labels.save(photo(0), block(40, 5, 50, 15))
    labels.save(photo(1), block(0, 0, 20, 20))
    labels = Labels(tmp_path / "mine")
    labels.save(photo(0), block(10, 10, 30, 32))  # IoU 0.91 with the first
    assert labels.count() == (3, 2)
    assert labels.count(photo(0)) == (2, 1)
    assert labels.count(photo(2)) == (0, 0)
    images = sorted(find_images(labels.images_folder), key=str)
    assert [image.path.name[:5] for image in images] == ["0001-", "0002-"]
    assert np.array_equal(read_image(images[1].path), photo(1))
    matched = read_annotations(labels.file, images)
    assert matched.left_out == []
    masks = [instance.mask for instance in matched.images[images[0]].instances]
    assert np.array_equal(masks, [block(40, 5, 50, 15), block(10, 10, 30, 32)])


def test_an_images_labels_are_removed(tmp_path):
    labels = Labels(tmp_path)
    for seed in (0, 1):
        labels.save(photo(seed), block(0, 0, 20, 20))
    labels.remove(photo(0))
    labels.remove(photo(2))
    assert labels.count() == (1, 1)
    assert labels.count(photo(0)) == (0, 0)
    labels.save(photo(0), block(0, 0, 10, 10))
    assert len(list(labels.images_folder.iterdir())) == 2, "its file is the one from before"


def test_what_cannot_be_saved_or_read_is_refused(tmp_path):
    labels = Labels(tmp_path)
    with pytest.raises(InvalidInputError, match="the mask is empty: click"):
        labels.save(photo(0), block(0, 0, 0, 0))
    assert not labels.file.exists()
    labels.file.write_text("{")
    with pytest.raises(InvalidInputError, match=r"annotations\.json cannot be read as JSON"):
        Labels(tmp_path)
    labels.file.write_text(json.dumps({"images": []}))
    with pytest.raises(InvalidInputError, match="this COCO file cannot be read"):
        Labels(tmp_path)
