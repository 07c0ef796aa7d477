import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from groupmix_sam.distill import Grid, cache_bytes, cache_features, find_images
from groupmix_sam.distill.data import as_input, whole_images
from groupmix_sam.errors import InvalidInputError, SaveError

from .conftest import GRID, PlainTeacher, paint


class TiredTeacher(PlainTeacher):
    def __call__(self, x):
        raise AssertionError("asked again")


def test_it_holds_what_the_teacher_says_without_padding(photos, tmp_path):
    teacher = PlainTeacher()
    (image,), _ = cache_features(find_images(photos)[:1], teacher, tmp_path, GRID)
    held = load_file(image.maps)
    resized = np.asarray(Image.open(photos / "0.png").resize((128, 96), Image.BILINEAR))
    assert np.array_equal(load_file(image.image)["image"].numpy(), resized)
    expected = teacher(as_input(torch.tensor(resized), GRID.image_size))["features"][0, :, :6].permute(1, 2, 0)
    assert held["features"].shape == (6, 8, 256)
    torch.testing.assert_close(held["features"].float(), expected, rtol=2e-3, atol=2e-3)
    assert image.maps.stat().st_size + image.image.stat().st_size < cache_bytes([image], teacher, GRID)


def test_it_is_made_once_and_names_what_cannot_be_read(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.jpg").write_bytes(b"no image")
    paint(tmp_path / "a" / "good.png", 64, 64, 1)
    paint(tmp_path / "a" / "narrow.png", 400, 4, 1)
    images = find_images(tmp_path / "a")
    first, skipped = cache_features(images, PlainTeacher(), tmp_path / "c", GRID)
    again, _ = cache_features(images[1:2], TiredTeacher(), tmp_path / "c", GRID)
    assert first == again
    assert [p.path.name for p in skipped] == ["broken.jpg", "narrow.png"]
    with pytest.raises(InvalidInputError, match=r"broken\.jpg cannot be read or are too narrow"):
        cache_features(images[:1], PlainTeacher(), tmp_path / "c", GRID)


def test_what_the_teacher_refuses_is_not_laid_on_the_images(photos, tmp_path):
    class Narrow(PlainTeacher):
        def __call__(self, x):
            raise InvalidInputError("the model refuses inputs of 128")

    with pytest.raises(InvalidInputError, match="the model refuses"):
        cache_features(find_images(photos), Narrow(), tmp_path, GRID)


def test_a_changed_key_misses(tmp_path):
    """Another teacher, another size, another content: each is asked for anew, and what was there stays."""
    paint(tmp_path / "a.png", 64, 64, 1)
    images = find_images(tmp_path)
    entries = [cache_features(images, PlainTeacher(), tmp_path / "c", GRID)[0][0]]
    entries += cache_features(images, PlainTeacher(key="another"), tmp_path / "c", GRID)[0]
    entries += cache_features(images, PlainTeacher(), tmp_path / "c", Grid(64))[0]
    paint(tmp_path / "a.png", 64, 64, 2)
    entries += cache_features(images, PlainTeacher(), tmp_path / "c", GRID)[0]
    assert len({entry.maps for entry in entries}) == 4
    assert len({entry.image for entry in entries}) == 3, "the resized image is the same for both teachers"
    assert all(path.is_file() for entry in entries for path in (entry.image, entry.maps))


def test_the_teacher_is_asked_once_for_students_of_two_sizes(tmp_path):
    """Both get its maps of the image at 256; each gets the original resized to its own size, not the other's resized again."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (301, 400, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    images, teacher = find_images(tmp_path), PlainTeacher()
    (large,), _ = cache_features(images, teacher, tmp_path / "c", Grid(256, 16))
    assert teacher.calls == 1
    (small,), _ = cache_features(images, TiredTeacher(), tmp_path / "c", Grid(128, 8))
    assert small.maps == large.maps
    assert small.stride == 8
    for entry, (width, height) in ((large, (256, 193)), (small, (128, 96))):
        expected = np.asarray(Image.open(tmp_path / "a.png").resize((width, height), Image.BILINEAR))
        assert np.array_equal(entry.read()["image"].numpy(), expected)
    assert large.grid() == small.grid() == (12, 16)
    small.image.unlink()
    assert cache_features(images, TiredTeacher(), tmp_path / "c", Grid(128, 8))[0] == [small], "nor for a lost image"


def test_a_row_that_rounding_adds_is_left_out(tmp_path):
    """Of 255 rows the teacher at 256 sees 15 whole cells, a student at 128 sees 16: 127.5 is rounded up."""
    paint(tmp_path / "a.png", 256, 255, 1)
    images = find_images(tmp_path)
    (entry,), _ = cache_features(images, PlainTeacher(), tmp_path / "c", Grid(128, 8))
    assert load_file(entry.image)["image"].shape == (128, 128, 3)
    assert load_file(entry.maps)["features"].shape == (15, 16, 256)
    assert entry.grid() == (15, 16)
    (sample,) = whole_images([entry], Grid(128, 8))
    assert sample["valid"].sum() == 15 * 16
    assert sample["input"][0, :, 120:].any(), "the student sees the row"


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_shard_is_rebuilt(tmp_path, damage):
    paint(tmp_path / "a.png", 64, 64, 1)
    images = find_images(tmp_path)
    (image,), _ = cache_features(images, PlainTeacher(), tmp_path / "c", GRID)
    whole = {k: v.clone() for k, v in load_file(image.maps).items()}  # not the file itself, mapped into memory
    data = bytearray(image.maps.read_bytes())
    if damage == "flip":
        data[-100] ^= 1
    image.maps.write_bytes({"cut": data[:-10], "flip": data, "empty": b"", "text": b"no tensors"}[damage])
    teacher = PlainTeacher()
    (again,), _ = cache_features(images, teacher, tmp_path / "c", GRID)
    assert teacher.calls == 1
    assert again == image
    assert all(torch.equal(whole[k], v) for k, v in load_file(image.maps).items())


def test_a_disk_that_is_too_small_is_told_before(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with (tmp_path / "of another set.safetensors").open("wb") as file:
        file.truncate(10**9)  # which saves nothing
    with pytest.raises(InvalidInputError, match=r"may need 0\.0 GB more and the disk has 0\.0"):
        cache_features(find_images(photos), TiredTeacher(), tmp_path, GRID)


def test_a_disk_that_fills_up_leaves_no_part(tmp_path, photos, monkeypatch):
    def full(_maps, _path, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("groupmix_sam.distill.cache.save_file", full)
    with pytest.raises(SaveError, match="No space left"):
        cache_features(find_images(photos), PlainTeacher(), tmp_path, GRID)
    assert list(tmp_path.iterdir()) == []
