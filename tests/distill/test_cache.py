import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from groupmix_sam.distill import cache_bytes, cache_features, find_images
from groupmix_sam.errors import InvalidInputError, SaveError
from groupmix_sam.preprocess import normalize

from .conftest import SIZE, PlainTeacher, paint


class TiredTeacher(PlainTeacher):
    def __call__(self, x):
        raise AssertionError("asked again")


def test_it_holds_what_the_teacher_says_without_padding(photos, tmp_path):
    teacher = PlainTeacher()
    (image,), _ = cache_features(find_images(photos)[:1], teacher, tmp_path, SIZE)
    held = load_file(image.path)
    resized = np.asarray(Image.open(photos / "0.png").resize((128, 96), Image.BILINEAR))
    assert np.array_equal(held["image"].numpy(), resized)
    expected = teacher(normalize(torch.tensor(resized)[None]))["features"][0].permute(1, 2, 0)
    assert held["features"].shape == (6, 8, 256)
    torch.testing.assert_close(held["features"].float(), expected, rtol=2e-3, atol=2e-3)
    assert image.path.stat().st_size < cache_bytes([image], teacher, SIZE)


def test_it_is_made_once_and_names_what_cannot_be_read(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.jpg").write_bytes(b"no image")
    paint(tmp_path / "a" / "good.png", 64, 64, 1)
    paint(tmp_path / "a" / "narrow.png", 400, 4, 1)
    images = find_images(tmp_path / "a")
    first, skipped = cache_features(images, PlainTeacher(), tmp_path / "c", SIZE)
    again, _ = cache_features(images[1:2], TiredTeacher(), tmp_path / "c", SIZE)
    assert first == again
    assert [p.path.name for p in skipped] == ["broken.jpg", "narrow.png"]
    with pytest.raises(InvalidInputError, match=r"broken\.jpg cannot be read or are too narrow"):
        cache_features(images[:1], PlainTeacher(), tmp_path / "c", SIZE)


def test_what_the_teacher_refuses_is_not_laid_on_the_images(photos, tmp_path):
    class Narrow(PlainTeacher):
        def __call__(self, x):
            raise InvalidInputError("the model refuses inputs of 128")

    with pytest.raises(InvalidInputError, match="the model refuses"):
        cache_features(find_images(photos), Narrow(), tmp_path, SIZE)


def test_a_changed_key_misses(tmp_path):
    """Another teacher, another size, another content: each is asked for anew, and what was there stays."""
    paint(tmp_path / "a.png", 64, 64, 1)
    images = find_images(tmp_path)
    paths = {cache_features(images, PlainTeacher(), tmp_path / "c", SIZE)[0][0].path}
    paths.add(cache_features(images, PlainTeacher(key="another"), tmp_path / "c", SIZE)[0][0].path)
    paths.add(cache_features(images, PlainTeacher(), tmp_path / "c", 64)[0][0].path)
    paint(tmp_path / "a.png", 64, 64, 2)
    paths.add(cache_features(images, PlainTeacher(), tmp_path / "c", SIZE)[0][0].path)
    assert len(paths) == 4
    assert all(path.is_file() for path in paths)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_shard_is_rebuilt(tmp_path, damage):
    paint(tmp_path / "a.png", 64, 64, 1)
    images = find_images(tmp_path)
    (image,), _ = cache_features(images, PlainTeacher(), tmp_path / "c", SIZE)
    whole = {k: v.clone() for k, v in load_file(image.path).items()}  # not the file itself, mapped into memory
    data = bytearray(image.path.read_bytes())
    if damage == "flip":
        data[-100] ^= 1
    image.path.write_bytes({"cut": data[:-10], "flip": data, "empty": b"", "text": b"no tensors"}[damage])
    teacher = PlainTeacher()
    (again,), _ = cache_features(images, teacher, tmp_path / "c", SIZE)
    assert teacher.calls == 1
    assert again == image
    assert all(torch.equal(whole[k], v) for k, v in load_file(image.path).items())


def test_a_disk_that_is_too_small_is_told_before(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with (tmp_path / "of another set.safetensors").open("wb") as file:
        file.truncate(10**9)  # which saves nothing
    with pytest.raises(InvalidInputError, match=r"may need 0\.0 GB more and the disk has 0\.0"):
        cache_features(find_images(photos), TiredTeacher(), tmp_path, SIZE)


def test_a_disk_that_fills_up_leaves_no_part(tmp_path, photos, monkeypatch):
    def full(_maps, _path, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("groupmix_sam.distill.cache.save_file", full)
    with pytest.raises(SaveError, match="No space left"):
        cache_features(find_images(photos), PlainTeacher(), tmp_path, SIZE)
    assert list(tmp_path.iterdir()) == []
