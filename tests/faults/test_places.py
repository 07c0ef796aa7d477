"""Disks that are full, places that cannot be written to, no network, and two processes at the same work."""

import json
import resource
import socket
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from groupmix_sam import build_sam_groupmix, save_pretrained
from groupmix_sam.batch.engine import Job, Segmenter
from groupmix_sam.batch.storage import Folder
from groupmix_sam.distill import cache_features, find_images
from groupmix_sam.distill.checkpoint import Progress, save_checkpoint
from groupmix_sam.errors import SaveError, WeightsNotFoundError
from groupmix_sam.evaluate import LabelledDataset, Model, Protocol, Result, evaluate
from groupmix_sam.inference import Predictor
from groupmix_sam.live.loop import Result as Stream
from groupmix_sam.live.sinks import MaskFile, Overlay
from groupmix_sam.weights import save_weights

from ..distill.conftest import GRID, PlainTeacher, paint
from ..evaluate.images import PlainPredictor, draw_dataset
from ..inference.conftest import draw
from ..processes import start

TINY = {"encoder": "gmf_sam_test", "image_size": 256}


@contextmanager
def full_disk(room=100):
    """Let no file grow over so many bytes, as the system does it: writing fails in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def writers(tmp_path):
    """Yield everything that writes, by a name of the file and a function that writes it."""
    torch.manual_seed(0)
    sam = build_sam_groupmix(None, **TINY)
    predictor = Predictor(sam)
    predictor.set_image(draw())
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters())
    result = Result("labelled", {}, {}, {}, {}, [{"mask": "x" * 1000}])
    yield "a.safetensors", lambda path: save_weights(sam, path)
    yield "model.safetensors", lambda path: save_pretrained(sam, path.parent)
    yield "e.safetensors", predictor.save_embedding
    yield "c.safetensors", lambda path: save_checkpoint(path, model, model, optimizer, Progress())
    yield "r.json", result.save
    yield "p.parquet", lambda path: Folder(str(path.parent)).write(path.name, b"x" * 1000)


def test_a_full_disk_keeps_what_was_there(count, tmp_path):
    for name, write in writers(tmp_path):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_bytes(b"what was there")
        with full_disk(), pytest.raises(SaveError) as e:
            write(folder / name)
        assert "could not be written" in str(e.value)
        assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [(name, b"what was there")]
        count("full disk")
        write(folder / name)  # with room it works
        assert (folder / name).stat().st_size > 100


def test_a_full_disk_keeps_the_cache_and_the_parts(count, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(2):
        paint(tmp_path / "in" / f"{i}.png", 64, 64, i)
    images = find_images(tmp_path / "in")
    (done,), _ = cache_features(images[:1], PlainTeacher(), tmp_path / "cache", GRID)
    whole = {path: path.read_bytes() for path in (done.image, done.maps)}
    with full_disk(), pytest.raises(SaveError):
        cache_features(images, PlainTeacher(), tmp_path / "cache", GRID)
    assert {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == whole
    count("full disk")


def test_a_full_disk_keeps_what_a_stream_has_seen(count, tmp_path):
    result = Stream(0, 0.0, draw(), np.array([draw()[:, :, 0] > 100]), np.array([0.5]), 0.1)
    with MaskFile(tmp_path / "m.jsonl") as file:
        file.write(result)
        room = file.path.stat().st_size + 10
        with full_disk(room), pytest.raises(SaveError, match="cannot be written"):
            file.write(result)
    first, *_ = (tmp_path / "m.jsonl").read_text().split("\n")
    assert json.loads(first)["frame"] == 0
    count("full disk")


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_a_full_disk_keeps_the_overlay_of_before(count, tmp_path, name):
    """OpenCV writes on, and says nothing but a line on stderr a frame."""
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    result = Stream(0, 0.0, noise, np.zeros((0, 120, 160), bool), np.zeros(0), 0.1)
    with Overlay(path) as out:
        out.write(result)
    before = path.read_bytes()
    assert len(before) > 10_000
    with full_disk(5000), pytest.raises(SaveError, match=name), Overlay(path) as out:  # noqa: PT012
        for _ in range(5):
            out.write(result)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]
    count("full disk")


def test_a_full_disk_keeps_what_is_evaluated(count, tmp_path):
    """And the next start goes on to what would have come of one."""
    data = draw_dataset(tmp_path / "data")
    task = LabelledDataset(data / "annotations.json", data / "images", Protocol(prompts=("box",)))
    whole = evaluate(task, Model(PlainPredictor(), "plain", "hash"), tmp_path / "whole.json")
    with full_disk(2000), pytest.raises(SaveError, match="finished images are kept"):
        evaluate(task, Model(PlainPredictor(), "plain", "hash"), tmp_path / "again.json")
    assert evaluate(task, Model(PlainPredictor(), "plain", "hash"), tmp_path / "again.json") == whole
    count("full disk")


@pytest.mark.parametrize("where", ["a-file/cache", "/proc/cache", "/dev/null/cache"])
def test_places_that_cannot_be_written_to(count, tmp_path, where):
    (tmp_path / "a-file").write_bytes(b"")
    paint(tmp_path / "0.png", 64, 64, 0)
    place = tmp_path / where  # an absolute one replaces what is before it
    with pytest.raises(SaveError):
        cache_features(find_images(tmp_path), PlainTeacher(), place, GRID)
    with pytest.raises(SaveError):
        Folder(str(place)).write("a", b"x")
    with pytest.raises(SaveError):
        save_pretrained(build_sam_groupmix(None, **TINY), place)
    count("places that cannot be written to", 3)


def test_a_cache_that_is_whole_needs_no_writing(count, tmp_path):
    paint(tmp_path / "0.png", 64, 64, 0)
    images = find_images(tmp_path)
    first = cache_features(images, PlainTeacher(), tmp_path / "cache", GRID)
    with full_disk(0):
        assert cache_features(images, PlainTeacher(), tmp_path / "cache", GRID) == first
    count("read-only cache")


def test_no_network(count, monkeypatch, tmp_path):
    """All that ships works, and what is on the Hub is an error that says so."""

    def refuse(*_):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("groupmix_sam.hub.time.sleep", lambda _: None)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    predictor = Predictor(build_sam_groupmix(image_size=256))
    predictor.set_image(draw())
    assert np.isfinite(predictor.predict(box=np.array([30, 22, 60, 45]))[2]).all()
    with pytest.raises(WeightsNotFoundError, match="cannot be reached"):
        build_sam_groupmix("hf-hub:org/none")
    count("no network", 2)


SHARE = """
import sys, time
from pathlib import Path
from groupmix_sam.distill import cache_features, find_images
from tests.distill.conftest import GRID, PlainTeacher
ready, images, cache = map(Path, sys.argv[1:])
ready.touch()
while len(list(ready.parent.iterdir())) < 2:  # both begin at once
    time.sleep(0.001)
found, skipped = cache_features(find_images(images), PlainTeacher(), cache, GRID)
print(len(found), len(skipped))
"""


def test_two_processes_share_a_cache(count, tmp_path):
    """Both find all of it, and it is what one process would have written, with nothing beside it."""
    for name in ("ready", "in"):
        (tmp_path / name).mkdir()
    for i in range(40):
        paint(tmp_path / "in" / f"{i}.png", 64 + i, 64, i)
    arguments = [[str(tmp_path / "ready" / str(i)), str(tmp_path / "in"), str(tmp_path / "cache")] for i in range(2)]
    both = [start(SHARE, *a) for a in arguments]
    assert [process.wait().stdout.split() for process in both] == [["40", "0"]] * 2
    cache_features(find_images(tmp_path / "in"), PlainTeacher(), tmp_path / "alone", GRID)
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == names
    for name in names:
        expected, found = (load_file(tmp_path / place / name) for place in ("alone", "cache"))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
        count("a cache of two processes")


def test_a_worker_on_a_full_disk_leaves_no_half_part(count, tmp_path):
    """The run stops, and the next start does the part."""
    import pyarrow as pa
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.fromarray(draw()).save(tmp_path / "in" / "a.png")
    weights = save_weights(build_sam_groupmix(None, **TINY), tmp_path / "w.safetensors")
    values = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "batch_size": 1}
    values |= {"device": "cpu", "threads": 1, "gpus_per_worker": 0}
    job = Job(
        source=str(tmp_path / "in"), output=str(tmp_path / "out"), everything=False, checkpoint=str(weights), **TINY, **values
    )
    worker = Segmenter(job)
    prompts = [[{"points": [], "labels": [], "box": [30.0, 22.0, 60.0, 45.0]}]]
    table = pa.table({"image": ["a.png"], "prompts": prompts, "part": [0]})
    with full_disk(), pytest.raises(SaveError):
        worker(table)
    assert not list((tmp_path / "out" / "masks").glob("part-*"))
    count("full disk")
    assert worker(table)["masks"].to_pylist() == [1]
