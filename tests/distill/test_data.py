import io
import signal
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from groupmix_sam.distill import Grid, Phase, Recipe, cache_features, find_images
from groupmix_sam.distill.data import Samples, Share, as_input, resized, sample_loader, whole_images
from groupmix_sam.distill.teacher import teach
from groupmix_sam.errors import InvalidInputError

from ..processes import start
from .conftest import GRID, SIZE, PlainTeacher, paint


def plain(crop, batch_size=2, **kwargs):
    return Recipe(phases=(Phase(1.0, crop, batch_size),), **kwargs)


WORKER = """
import os, signal, sys, time
from groupmix_sam.distill import data
data.GRACE_SECONDS = float(sys.argv[1])
data.pass_first_stop(0)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.2)
print("lives", flush=True)
if len(sys.argv) > 2:
    os.kill(os.getpid(), signal.SIGTERM)
time.sleep(500)
"""


@pytest.mark.parametrize(("args", "code"), [(["1"], 1), (["500", "again"], -signal.SIGTERM)])
def test_a_worker_outlives_one_stop_but_not_for_ever(args, code):
    """One that nobody ends any more ends by itself, and a second signal ends it at once."""
    done = start(WORKER, *args).wait()
    assert (done.stdout, done.returncode) == ("lives\n", code)


def test_find_images_in_a_folder(photos, tmp_path):
    assert [p.path.name for p in find_images(photos)] == ["0.png", "2.png", "4.png", "1.png", "3.png", "5.png"]
    with pytest.raises(InvalidInputError, match="has no image in it"):
        find_images(tmp_path)
    with pytest.raises(InvalidInputError, match="there is no folder"):
        find_images(tmp_path / "nothing")


def test_find_images_in_a_list(photos, tmp_path):
    path = photos / "list.txt"
    path.write_text("below/3.png\n\n 0.png \n")
    assert [p.path.name for p in find_images(path)] == ["3.png", "0.png"]
    path.unlink()


def test_find_images_in_a_tar(photos, tmp_path):
    """As SA-1B's: images and their JSON side by side, in a tar without compression; in a folder beside images, too."""
    with tarfile.open(tmp_path / "sa_000000.tar", "w") as tar:
        for name in ("0.png", "below/1.png"):
            tar.add(photos / name, arcname=f"./{name}")
            tar.addfile(tarfile.TarInfo(f"./{name}.json"), io.BytesIO(b""))
    paint(tmp_path / "loose.png", 64, 64, 0)
    loose, first, second = find_images(tmp_path)
    assert str(first) == f"{tmp_path / 'sa_000000.tar'}:./0.png"
    for image, path in ((loose, tmp_path / "loose.png"), (first, photos / "0.png"), (second, photos / "below" / "1.png")):
        assert image.read_bytes() == path.read_bytes()
        assert np.array_equal(image.decode(), np.asarray(Image.open(path)))
    assert find_images(tmp_path / "sa_000000.tar") == [first, second]
    (tmp_path / "bad.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(InvalidInputError, match="uncompressed tar"):
        find_images(tmp_path / "bad.tar")


def test_resize_as_sam_predictor(photos):
    from segment_anything.utils.transforms import ResizeLongestSide

    image = np.asarray(Image.open(photos / "0.png"))
    assert np.array_equal(resized(image, SIZE).numpy(), ResizeLongestSide(SIZE).apply_image(image))
    with pytest.raises(InvalidInputError, match="too narrow"):
        resized(np.zeros((4, 400, 3), np.uint8), SIZE)


@pytest.mark.parametrize("crops", [1, 2])
def test_crops_come_with_their_features(cached, photos, crops):
    """Whatever is cut, the teacher says the same of it as is written beside it, from the cache or asked anew."""
    teacher = PlainTeacher()
    recipe = plain(64, crops_per_image=crops)
    for images in (cached, find_images(photos)):
        samples = Samples(images, recipe, 0, GRID)
        for i in range(3):
            batch = teach(samples[i], teacher)
            assert batch["input"].shape == (crops, 3, 64, 64)
            assert batch["valid"].all()
            for name, expected in teacher(batch["input"]).items():
                torch.testing.assert_close(batch[name].float(), expected.permute(0, 2, 3, 1), rtol=5e-3, atol=5e-3)


def test_every_image_comes_once_before_any_comes_again(cached):
    samples = Samples(cached, plain(0, 1), 0, GRID)
    for epoch in range(2):
        firsts = [tuple(samples[epoch * len(cached) + i]["input"][0, :, 0, 0].tolist()) for i in range(len(cached))]
        assert len(set(firsts)) == len(cached)


def test_a_sample_depends_on_its_number_alone(cached):
    samples, again = (Samples(cached, plain(64), 0, GRID) for _ in range(2))
    torch.manual_seed(1)
    expected = [samples[i] for i in (0, 5, 9)]
    for i, sample in zip((9, 5, 0), reversed(expected), strict=True):
        assert all(torch.equal(again[i][k], v) for k, v in sample.items())
    other = Samples(cached, plain(64, seed=1), 0, GRID)
    assert any(not torch.equal(other[i]["input"], sample["input"]) for i, sample in zip((0, 5, 9), expected, strict=True))


@pytest.mark.parametrize("crop", [0, 32])
@pytest.mark.parametrize("cache", [True, False])
def test_half_the_pixels_come_with_the_same_features(photos, tmp_path, crop, cache):
    """A student at 64 pixels and stride 8 has the cells of the teacher at 128: its pixels and the maps show the same part."""
    grid, teacher = Grid(64, 8), PlainTeacher()
    images = find_images(photos)[:1]
    samples = Samples(cache_features(images, teacher, tmp_path, grid)[0] if cache else images, plain(crop), 0, grid)
    whole = np.asarray(Image.open(photos / "0.png").resize((128, 96), Image.BILINEAR))
    half = np.asarray(Image.open(photos / "0.png").resize((64, 48), Image.BILINEAR))
    expected = teacher(as_input(torch.tensor(whole), 128))["features"][0].permute(1, 2, 0)
    pixels = as_input(torch.tensor(half), 64)[0]
    for i in range(4):
        batch = teach(samples[i], teacher)
        rows, columns = (4, 4) if crop else (6, 8)
        assert batch["input"].shape == (1, 3, crop or 64, crop or 64)
        assert batch["valid"].sum() == rows * columns
        places = [(r, c) for r in range(7 - rows) for c in range(9 - columns)]
        cut = [pixels[:, 8 * r : 8 * (r + rows), 8 * c : 8 * (c + columns)] for r, c in places]
        seen = batch["input"][0, :, : 8 * rows, : 8 * columns]
        (r, c) = next(place for place, part in zip(places, cut, strict=True) if torch.equal(part, seen))
        found = batch["features"][0, :rows, :columns].float()
        torch.testing.assert_close(found, expected[r : r + rows, c : c + columns], rtol=5e-3, atol=5e-3)


def test_resized_crops_of_half_the_pixels_show_the_teacher_the_same_part(photos):
    samples = Samples(find_images(photos), plain(0, 1, augmentation="resized_crop"), 0, Grid(64, 8))
    first = samples[0]
    assert first["input"].shape == (1, 3, 64, 64)
    assert first["image"].shape == (1, 3, 128, 128)
    small = torch.nn.functional.avg_pool2d(first["image"], 2)
    assert (small - first["input"]).abs().mean() < 0.1 < (small.flip(3) - first["input"]).abs().mean()


def test_crops_larger_than_the_image_are_padded(cached):
    """The images, 128 on the long side, have 6 x 16 pixels on the short one or less."""
    sample = Samples(cached, plain(128), 0, GRID)[0]
    rows = int(sample["valid"][0, :, 0].sum())
    assert 0 < rows < 8
    assert sample["valid"][0, :rows].all()
    assert not sample["valid"][0, rows:].any()
    assert sample["input"].shape == (1, 3, 128, 128)
    assert not sample["input"][0, :, rows * 16 + 15 :].any()
    assert not sample["features"][0, rows:].any()


def test_whole_images_are_as_at_inference(photos, cached):
    from segment_anything import SamPredictor

    from groupmix_sam import build_sam_groupmix

    seen = []
    sam = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=SIZE)
    sam.image_encoder.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    images = {p["input"].sum().item(): p["input"] for p in whole_images(cached, GRID)}
    for path in find_images(photos):
        SamPredictor(sam).set_image(path.decode())
        nearest = min(images.values(), key=lambda p: (p - seen[-1]).abs().sum().item())
        torch.testing.assert_close(nearest, seen[-1], rtol=0, atol=1e-5)


def test_resized_crops_are_seeded_and_seen_by_the_teacher(photos):
    samples = Samples(find_images(photos), plain(0, 1, augmentation="resized_crop"), 0, GRID)
    state = torch.get_rng_state()
    first, again, other = samples[0], samples[0], samples[6]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first["input"], again["input"])
    assert first["input"].shape == (1, 3, SIZE, SIZE)
    assert not torch.equal(first["input"], other["input"])
    teacher = PlainTeacher()
    torch.testing.assert_close(teach(first, teacher)["features"].permute(0, 3, 1, 2), teacher(first["input"])["features"])


def test_the_next_image_stands_in_for_one_that_cannot_be_read(tmp_path):
    for i in range(3):
        paint(tmp_path / f"{i}.png", 64, 64, i)
    (tmp_path / "1.png").write_bytes(b"broken")
    samples = Samples(find_images(tmp_path), plain(0, 1), 0, Grid(64))
    skipped = torch.cat([samples[i]["skipped"] for i in range(3)])
    assert skipped.tolist() == [1]
    for i in (0, 2):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(InvalidInputError, match="none of the 3 images"):
        samples[0]


@given(
    first=st.integers(0, 5), steps=st.integers(1, 5), size=st.integers(1, 4), accumulate=st.integers(1, 3), n=st.integers(1, 4)
)
def test_processes_share_out_what_one_would_see(first, steps, size, accumulate, n):
    """Together, in each step, they take what one process takes with as many parts more; and going on later changes nothing."""
    alone = list(Share(0, first + steps, size, accumulate * n, 0, 1))
    shares = [list(Share(first, first + steps, size, accumulate, p, n)) for p in range(n)]
    assert [len(share) for share in shares] == [steps * accumulate] * n
    together = [part for parts in zip(*shares, strict=True) for part in parts]
    assert together == alone[first * accumulate * n :]
    assert sorted(i for part in alone for i in part) == list(range((first + steps) * size * accumulate * n))


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_gives_the_samples_in_order(cached, workers):
    samples = Samples(cached, plain(64), 0, GRID)
    batches = list(sample_loader(samples, Share(1, 3, 2, 1, 0, 1), workers))
    assert len(batches) == 2
    for batch, indices in zip(batches, ((2, 3), (4, 5)), strict=True):
        assert torch.equal(batch["input"], torch.cat([samples[i]["input"] for i in indices]))


def test_input_by_hand():
    out = as_input(torch.tensor([[[255, 0, 128]]], dtype=torch.uint8), 16)
    expected = [(255 - 123.675) / 58.395, (0 - 116.28) / 57.12, (128 - 103.53) / 57.375]
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor(expected))
    assert not out[0, :, 1:].any(), "padding"
    assert not out[0, :, :, 1:].any()
