"""Damaged files of every kind that is read: an error of ours or a good result, never anything else."""

import io
import json
import pickle
import shutil
import struct
import tarfile
import warnings
import zlib

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from groupmix_sam import build_sam_groupmix
from groupmix_sam.batch.prompt_table import read_prompt_table
from groupmix_sam.batch.storage import Folder
from groupmix_sam.distill import PRESETS, cache_features, find_images, load_recipe
from groupmix_sam.distill.checkpoint import Progress, load_checkpoint, save_checkpoint
from groupmix_sam.errors import InvalidInputError
from groupmix_sam.evaluate import LabelledDataset, Model, Protocol, Result, evaluate, load_result, summary_text
from groupmix_sam.evaluate.detections import DetectionDataset
from groupmix_sam.files import sha256
from groupmix_sam.images import decode_image, read_image
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.exported_folder import read_config
from groupmix_sam.masks import decode_rle, encode_rle
from groupmix_sam.prompts import Prompt, read_prompts, read_shared_prompts, stack_prompts
from groupmix_sam.weights import read_weights, save_weights

from ..distill.conftest import GRID, PlainTeacher
from ..evaluate.images import PlainPredictor, draw_dataset
from ..inference.conftest import draw as drawn
from .damage import JUNK, bounded, damaged, mutated

pytestmark = pytest.mark.release

TINY = {"encoder": "gmf_sam_test", "image_size": 256}
IMAGE = drawn(24, 32)


def encoded(form, **options):
    out = io.BytesIO()
    Image.fromarray(IMAGE).save(out, form, **options)
    return out.getvalue()


IMAGES = {
    "JPEG": encoded("JPEG"),
    "PNG": encoded("PNG"),
    "TIFF": encoded("TIFF"),
    "TIFF, packed": encoded("TIFF", compression="tiff_lzw"),
    "WebP": encoded("WEBP", lossless=True),
    "BMP": encoded("BMP"),
}


def is_image(image):
    return image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return build_sam_groupmix(None, **TINY)


@pytest.fixture(scope="module")
def predictor(sam):
    return Predictor(sam)


@pytest.mark.parametrize("form", IMAGES)
@bounded(80)
@given(data=st.data())
def test_images(attempt, form, data):
    content = data.draw(damaged(IMAGES[form]))
    image = attempt(form, lambda: decode_image(content, "x"))
    assert image is None or is_image(image)
    if content == IMAGES[form]:
        near = 30 if form == "JPEG" else 0
        assert np.abs(image.astype(int) - IMAGE).mean() <= near


@pytest.mark.parametrize("form", IMAGES)
@pytest.mark.parametrize("limit", [500, 300])  # Pillow warns from its limit on and refuses from twice the limit on
def test_bombs(refuse, form, limit, monkeypatch):
    """An image's size is looked at before its pixels are unpacked."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("unpacked"))
    refuse("bombs", lambda: decode_image(IMAGES[form], "bomb"))


def test_a_bomb_of_2700_megabytes(refuse):
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    content = IMAGES["PNG"][:12] + header + struct.pack(">I", zlib.crc32(header)) + IMAGES["PNG"][33:]
    refuse("bombs", lambda: decode_image(content, "bomb"))


@bounded(60)
@given(data=st.data())
def test_tars(attempt, folder, data):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("a.png", "b.jpg"):
            content = IMAGES["PNG" if name == "a.png" else "JPEG"]
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (folder / "x.tar").write_bytes(data.draw(damaged(out.getvalue())))
    for source in attempt("tars", lambda: find_images(folder / "x.tar")) or []:
        image = attempt("images in tars", source.decode)
        assert image is None or is_image(image)


@bounded(40)
@given(data=st.data())
def test_lists(attempt, folder, data):
    (folder / "good.png").write_bytes(IMAGES["PNG"])
    (folder / "x.txt").write_bytes(data.draw(damaged(b"good.png\n\nnone.png\ngood.png\n")))
    for source in attempt("lists", lambda: find_images(folder / "x.txt")) or []:
        image = attempt("images in lists", source.decode)
        assert image is None or np.array_equal(image, IMAGE)


@pytest.fixture(scope="module")
def whole_weights(sam, folder):
    return save_weights(sam, folder / "whole.safetensors", training={"steps": 1}).read_bytes()


@bounded(40)
@given(data=st.data())
def test_weights(attempt, whole_weights, folder, sam, data):
    """What is read has the shapes and numbers of a model: a header's damage does not come through."""
    head = 8 + int.from_bytes(whole_weights[:8], "little")
    content = data.draw(damaged(whole_weights[:head])) + whole_weights[head:]
    (folder / "x.safetensors").write_bytes(content)
    for said in (TINY, {}):  # without, the header says what they are
        found = attempt("weights", lambda said=said: build_sam_groupmix(folder / "x.safetensors", **said))
        if found is not None:
            assert all(torch.isfinite(value).all() for value in found.state_dict().values())


# Not a number, minus infinity, not a number, one, and one: each in four bytes.
VALUES = [b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\xff" * 4, b"\0\0\x80\x3f", b"\0\0\x80\x3f"]


@bounded(20)
@given(data=st.data())
def test_values_of_weights(attempt, whole_weights, folder, sam, data):
    """No checksum is in a file of weights: a number may be another one, but is one."""
    head = 8 + int.from_bytes(whole_weights[:8], "little")
    content = bytearray(whole_weights)
    for at in data.draw(st.lists(st.integers(head, len(content) - 4), min_size=1, max_size=4)):
        content[at - at % 4 : at - at % 4 + 4] = data.draw(st.sampled_from(VALUES))
    (folder / "x.safetensors").write_bytes(content)
    found = attempt("values of weights", lambda: build_sam_groupmix(folder / "x.safetensors", **TINY))
    assert found is None or all(torch.isfinite(v).all() for v in found.state_dict().values())


class Payload:
    """What unpickling would run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "mobile_sam.pt", "x.safetensors"])
@pytest.mark.parametrize("how", ["pickle", "torch", "legacy", "inside"])
def test_pickles_never_run(refuse, folder, name, how):
    path, trace = folder / name, folder / "it-ran"
    payload = {"a": torch.zeros(1), "b": Payload(trace)} if how == "inside" else Payload(trace)
    if how == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=how != "legacy")
    trace.unlink(missing_ok=True)
    refuse("pickles", lambda: build_sam_groupmix(path, **TINY))
    assert not trace.exists()


@bounded(60)
@given(data=st.data())
def test_pt_files(attempt, folder, data):
    out = io.BytesIO()
    saved = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    torch.save(saved, out)
    content = data.draw(damaged(out.getvalue()))
    (folder / "y.pt").write_bytes(content)
    found = attempt(".pt files", lambda: read_weights(folder / "y.pt"))
    assert found is None or all(isinstance(value, torch.Tensor) for value in found[0].values())
    if content == out.getvalue():
        assert found[0].keys() == saved.keys()
        assert all(torch.equal(value, saved[name]) for name, value in found[0].items())


@pytest.fixture(scope="module")
def exported(folder, sam):
    """A folder as `groupmix-sam export` writes it, whose models do nothing: what is in them does not matter here."""
    import onnx
    from onnx import TensorProto, helper

    place = folder / "exported"
    place.mkdir()
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    files = [f"{part}.onnx" for part in ("encoder", "masks", "image", "decoder")]
    for name in files:
        onnx.save(model, place / name)
    config = {"format_version": 1, "runtime": "onnx", "precision": "fp32", "image_size": 256, "dynamic_batch": False}
    config |= {"embed_stride": 16, "input_size": [256, 256]}
    config |= {"mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0], "mask_threshold": 0.0, "model_hash": "0" * 64}
    config["files"] = {name: sha256(place / name) for name in files}
    (place / "config.json").write_text(json.dumps(config))
    assert Predictor.from_pretrained(place).image_size == 256
    return place, config


@bounded(80)
@given(data=st.data())
def test_configs_of_exported_folders(attempt, exported, data):
    """What is accepted says how an image is brought to the encoder, and that is what happens: seven is its only value."""
    place, config = exported
    for content in (json.dumps(data.draw(mutated(config))).encode(), data.draw(damaged(json.dumps(config).encode()))):
        (place / "config.json").write_bytes(content)
        found = attempt("config.json", lambda: Predictor.from_pretrained(place))
        if found is not None:
            said = json.loads(content)
            side, (height, width) = said["image_size"], said["input_size"]
            if side * 24 // 32 > height or side > width:
                with pytest.raises(InvalidInputError, match="does not fit the model"):
                    found.preprocess(np.zeros((24, 32, 3), dtype=np.uint8))
                continue
            x = found.preprocess(np.full((24, 32, 3), 7, dtype=np.uint8))
            expected = ((7 - np.array(said["mean"])) / np.array(said["std"]))[:, None, None]
            rows = side * 24 // 32
            assert x.shape == (3, height, width)
            np.testing.assert_allclose(x[:, :rows], np.broadcast_to(expected, (3, rows, side)), rtol=1e-5)
            assert not x[:, rows:].any()


@bounded(20)
@given(data=st.data())
def test_models_of_exported_folders(attempt, exported, data):
    """Their hashes are in the config: nothing but what was written is read."""
    place, config = exported
    (place / "config.json").write_text(json.dumps(config))
    whole = (place / "image.onnx").read_bytes()
    content = data.draw(damaged(whole))
    (place / "image.onnx").write_bytes(content)
    found = attempt("exported models", lambda: read_config(place))
    (place / "image.onnx").write_bytes(whole)
    assert (found is not None) == (content == whole)


@bounded(25)
@given(data=st.data())
def test_feature_caches(count, folder, data):
    """A damaged file is made anew, to what it was."""
    (folder / "cached").mkdir(exist_ok=True)
    (folder / "cached" / "a.png").write_bytes(IMAGES["PNG"])
    images = find_images(folder / "cached")
    ((image,), _) = cache_features(images, PlainTeacher(), folder / "cache", GRID)
    file = data.draw(st.sampled_from([image.image, image.maps]))
    whole = file.read_bytes()
    file.write_bytes(data.draw(damaged(whole)))
    assert cache_features(images, PlainTeacher(), folder / "cache", GRID) == ([image], [])
    assert file.read_bytes() == whole
    count("feature caches")
    file.unlink()


@bounded(40)
@given(data=st.data())
def test_embeddings(attempt, folder, predictor, data):
    """What is read is what was saved, to the last bit."""
    predictor.set_image(IMAGE)
    expected = predictor.get_image_embedding()
    whole = predictor.save_embedding(folder / "e.safetensors").read_bytes()
    (folder / "e.safetensors").write_bytes(data.draw(damaged(whole)))
    predictor.reset_image()
    attempt("embeddings", lambda: predictor.load_embedding(folder / "e.safetensors"))
    if predictor.is_image_set:
        assert np.array_equal(predictor.get_image_embedding(), expected)


@bounded(40)
@given(data=st.data())
def test_checkpoints(attempt, folder, data):
    """What is read is what was saved, to the last bit."""

    def student():
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        return model, optimizer

    state = torch.get_rng_state()
    model, optimizer = student()
    save_checkpoint(folder / "c.safetensors", model, model, optimizer, Progress(3, 4.0))
    content = data.draw(damaged((folder / "c.safetensors").read_bytes()))
    (folder / "c.safetensors").write_bytes(content)
    again, other = student()
    progress = attempt("checkpoints", lambda: load_checkpoint(folder / "c.safetensors", again, again, other))
    assert progress in (None, Progress(3, 4.0))
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    torch.set_rng_state(state)


@bounded(150)
@given(data=st.data())
def test_recipes(attempt, folder, data):
    """What is read can be written and read again; what means the same is the same."""
    values = PRESETS["default"].to_dict()
    path = folder / "x.yaml"
    for content in (yaml.safe_dump(data.draw(mutated(values))).encode(), data.draw(damaged(yaml.safe_dump(values).encode()))):
        path.write_bytes(content)
        recipe = attempt("recipes", lambda: load_recipe(str(path)))
        if recipe is not None:
            if yaml.safe_load(content) == values:
                assert recipe == PRESETS["default"]
            path.write_text(yaml.safe_dump(recipe.to_dict()))
            assert load_recipe(str(path)) == recipe


PROMPTS = [
    {"image": "a.png", "x": 3, "y": 4},
    {"image": "a.png", "left": 1, "top": 2, "right": 30, "bottom": 20},
    {"image": "b.png", "points": [[1, 2], [3, 4]], "labels": [1, 0], "box": [1, 2, 3, 4]},
]
CSV = b"image,x,y\na.png,3,4\nb.png,5,6\n"


@bounded(150)
@given(data=st.data())
def test_prompts(attempt, folder, data):
    """What is read is numbers, as many as belong together; what means the same is the same."""
    content = data.draw(mutated(PROMPTS))
    (folder / "p.json").write_text(json.dumps(content))
    found = attempt("prompts, JSON", lambda: read_prompts(folder / "p.json"))
    assert found is None or are_prompts(found)
    if content == PROMPTS:
        assert [prompt.points for prompt in found["a.png"]] == [[[3, 4]], []]
        assert found["a.png"][1].box == [1, 2, 30, 20]
        assert found["b.png"] == [Prompt([[1, 2], [3, 4]], [1, 0], [1, 2, 3, 4])]
    damaged_csv = data.draw(damaged(CSV))
    (folder / "p.csv").write_bytes(damaged_csv)
    found = attempt("prompts, CSV", lambda: read_prompts(folder / "p.csv"))
    assert found is None or are_prompts(found)
    if damaged_csv == CSV:
        assert found == {"a.png": [Prompt([[3, 4]], [1])], "b.png": [Prompt([[5, 6]], [1])]}


def are_prompts(found):
    prompts = [prompt for name, group in found.items() for prompt in group if isinstance(name, str)]
    points = [prompt.points for prompt in prompts if prompt.points]
    boxes = [prompt.box for prompt in prompts if prompt.box is not None]
    return (
        all(len(prompt.points) == len(prompt.labels) for prompt in prompts)
        and all(np.isfinite(np.array(p, dtype=float).reshape(-1, 2)).all() for p in points)
        and all(np.isfinite(np.array(box, dtype=float).reshape(4)).all() for box in boxes)
    )


@bounded(100)
@given(data=st.data())
def test_prompts_of_a_stream(attempt, folder, predictor, data):
    """What is read, the predictor takes or refuses."""
    whole = {"boxes": [[1, 2, 20, 30], [2, 3, 9, 9]], "points": [[[1, 2]], [[3, 4]]], "labels": [[1], [0]]}
    content = data.draw(mutated(whole))
    (folder / "s.json").write_text(json.dumps(content))
    predictor.set_image(IMAGE)

    def ask():
        return predictor.predict_prompts(*stack_prompts(read_shared_prompts(folder / "s.json")), multimask_output=False)

    found = attempt("prompts of a stream", ask)
    assert found is None or all(mask.shape == IMAGE.shape[:2] for (mask,) in found[0])
    assert content != whole or len(found[0]) == 2


TABLE = b"image,x,y,left,top,right,bottom\na,1,2,,,,\nb,,,1,2,3,4\n"


@bounded(100)
@given(data=st.data())
def test_tables_of_prompts(attempt, folder, data):
    import pyarrow as pa
    from pyarrow import parquet

    out = pa.BufferOutputStream()
    parquet.write_table(pa.table({"image": ["a", "b"], "box": [[1.0, 2.0, 3.0, 4.0]] * 2}), out)
    box = Prompt(box=[1.0, 2.0, 3.0, 4.0])
    for name, whole, expected in (
        ("t.csv", TABLE, {"a": [Prompt([[1.0, 2.0]])], "b": [box]}),
        ("t.parquet", bytes(out.getvalue()), {"a": [box], "b": [box]}),
    ):
        content = data.draw(damaged(whole))
        (folder / name).write_bytes(content)
        found = attempt(f"tables, {name}", lambda name=name: read_prompt_table(folder / name))
        assert found is None or all(isinstance(image, str) for image in found)
        if content == whole:
            assert found == expected


@pytest.fixture(scope="module")
def dataset(folder):
    return draw_dataset(folder / "data", count=1)


def measured(task):
    return [row for name in task.images() for row in task.measure(PlainPredictor(), name)]


@bounded(120)
@given(data=st.data())
def test_annotations(attempt, dataset, folder, data):
    """What means the same gives the same IoUs: of the disc and the square, and of a predictor that has a box's upper half."""
    coco = json.loads((dataset / "annotations.json").read_text())
    if data.draw(st.booleans()):
        content = data.draw(damaged(json.dumps(coco).encode()))
    else:
        content = json.dumps(data.draw(mutated(coco))).encode()
    (folder / "a.json").write_bytes(content)
    protocol = Protocol(prompts=("box",))
    rows = attempt("annotations", lambda: measured(LabelledDataset(folder / "a.json", dataset / "images", protocol)))
    assert rows is None or all(0 <= row["iou"] <= 1 for row in rows)
    if rows is not None and json.loads(content) == coco:
        half = np.pi / (4 + np.pi)  # half of a disc lies in half of its box: (pi / 2) / (2 + pi - pi / 2)
        assert [row["iou"] for row in rows] == pytest.approx([half, 0.5], abs=0.01)


@bounded(60)
@given(data=st.data())
def test_detections(attempt, dataset, folder, data):
    whole = [{"image_id": 10, "category_id": 1, "bbox": [8, 10, 24, 24], "score": 0.5}]
    content = data.draw(mutated(whole))
    (folder / "d.json").write_text(json.dumps(content))
    labels = dataset / "annotations.json"
    rows = attempt("detections", lambda: measured(DetectionDataset(folder / "d.json", labels, dataset / "images", Protocol())))
    if content == whole:
        (row,) = rows
        assert (row["image_id"], row["category_id"], row["score"]) == (10, 1, 0.5)


@pytest.fixture(scope="module")
def whole_result(dataset, folder):
    task = LabelledDataset(dataset / "annotations.json", dataset / "images", Protocol(prompts=("box",)))
    evaluate(task, Model(PlainPredictor(), "plain", "hash"), folder / "r.json")
    return json.loads((folder / "r.json").read_text())


@bounded(120)
@given(data=st.data())
def test_results(attempt, count, whole_result, folder, data):
    """What is read can be summed up."""
    (folder / "r.json").write_text(json.dumps(data.draw(mutated(whole_result))))
    result = attempt("results", lambda: load_result(folder / "r.json"))
    assert result is None or isinstance(result, Result)
    if result is not None:
        assert "box" in summary_text(result)
        count("results, summed up")
    (folder / "r.json").write_bytes(data.draw(damaged(json.dumps(whole_result).encode())))
    attempt("results", lambda: load_result(folder / "r.json"))


@bounded(60)
@given(data=st.data())
def test_what_a_killed_evaluation_left(attempt, dataset, folder, data):
    """It is gone on with or refused; a cut last line is what a kill leaves."""
    task = LabelledDataset(dataset / "annotations.json", dataset / "images", Protocol(prompts=("box",)))
    output, parts = folder / "k.json", folder / "k.json.parts"
    output.unlink(missing_ok=True)
    with pytest.raises(KeyboardInterrupt):
        evaluate(task, Model(Interrupted(), "plain", "hash"), output)
    (parts / "0.jsonl").write_bytes(data.draw(damaged((parts / "0.jsonl").read_bytes())))
    result = attempt("killed evaluations", lambda: evaluate(task, Model(PlainPredictor(), "plain", "hash"), output))
    assert result is None or {row["image"] for row in result.rows} == {"0.png"}
    shutil.rmtree(parts, ignore_errors=True)


class Interrupted(PlainPredictor):
    def set_image(self, image):
        raise KeyboardInterrupt


@bounded(200)
@given(data=st.data())
def test_run_lengths(attempt, data):
    mask = IMAGE[:, :, 0] > 100
    whole = encode_rle(mask)
    rle = data.draw(mutated(dict(whole)))
    if isinstance(rle, dict) and isinstance(rle.get("counts"), str) and data.draw(st.booleans()):
        rle["counts"] = data.draw(damaged(rle["counts"].encode()))
    found = attempt("run lengths", lambda: decode_rle(rle))
    if found is not None:
        assert found.dtype == bool
        assert found.shape == tuple(rle["size"])


@bounded(25)
@given(junk=JUNK)
def test_junk_for_names(attempt, folder, junk):
    """Whatever is given for a path or a name."""
    by_name = (lambda name: build_sam_groupmix(name, **TINY), lambda name: build_sam_groupmix(None, encoder=name))
    for read in (*by_name, read_image):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            attempt("names", lambda read=read: read(junk))


def test_a_folder_that_is_none(attempt):
    for where in ("gopher://x", "s3:/", "file://", "fsspec+none://x"):
        attempt("places", lambda where=where: Folder(where))
