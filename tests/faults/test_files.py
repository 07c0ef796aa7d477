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
from groupmix_sam.evaluate import LabelledDataset, Model, Protocol, Result, evaluate, load_result, summary_text
from groupmix_sam.evaluate.detections import DetectionDataset
from groupmix_sam.files import sha256
from groupmix_sam.images import decode_image, read_image
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.exported_folder import read_config
from groupmix_sam.live.loop import Prompts
from groupmix_sam.masks import decode_rle, encode_rle
from groupmix_sam.prompts import read_prompts
from groupmix_sam.weights import read_weights, save_weights

from ..distill.conftest import GRID, PlainTeacher
from ..evaluate.images import PlainPredictor, draw_dataset
from ..inference.conftest import draw as drawn
from .damage import JUNK, bounded, damaged, mutated

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


@pytest.mark.parametrize("form", IMAGES)
@pytest.mark.parametrize("limit", [500, 300])  # Pillow warns from its limit on and refuses from twice the limit on
def test_bombs(attempt, form, limit, monkeypatch):
    """An image's size is looked at before its pixels are unpacked."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("unpacked"))
    assert attempt("bombs", lambda: decode_image(IMAGES[form], "bomb")) is None


def test_a_bomb_of_2700_megabytes(attempt):
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    content = IMAGES["PNG"][:12] + header + struct.pack(">I", zlib.crc32(header)) + IMAGES["PNG"][33:]
    assert attempt("bombs", lambda: decode_image(content, "bomb")) is None


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


@bounded(20)
@given(data=st.data())
def test_values_of_weights(attempt, whole_weights, folder, sam, data):
    """No checksum is in a file of weights: a number may be another one, but is one."""
    head = 8 + int.from_bytes(whole_weights[:8], "little")
    content = bytearray(whole_weights)
    for at in data.draw(st.lists(st.integers(head, len(content) - 4), min_size=1, max_size=4)):
        content[at - at % 4 : at - at % 4 + 4] = data.draw(st.sampled_from([b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\xff" * 4]))
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
def test_pickles_never_run(attempt, folder, name, how):
    path, trace = folder / name, folder / "it-ran"
    payload = {"a": torch.zeros(1), "b": Payload(trace)} if how == "inside" else Payload(trace)
    if how == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=how != "legacy")
    trace.unlink(missing_ok=True)
    assert attempt("pickles", lambda: build_sam_groupmix(path, **TINY)) is None
    assert not trace.exists()


@bounded(60)
@given(data=st.data())
def test_pt_files(attempt, folder, data):
    out = io.BytesIO()
    torch.save({"a": torch.arange(6.0), "b": torch.ones(2, 2)}, out)
    (folder / "y.pt").write_bytes(data.draw(damaged(out.getvalue())))
    attempt(".pt files", lambda: read_weights(folder / "y.pt"))


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
    config |= {"embed_stride": 16}
    config |= {"mean": [1.0, 2.0, 3.0], "std": [1.0, 1.0, 1.0], "mask_threshold": 0.0, "model_hash": "0" * 64}
    config["files"] = {name: sha256(place / name) for name in files}
    (place / "config.json").write_text(json.dumps(config))
    assert Predictor.from_pretrained(place).image_size == 256
    return place, config


@bounded(80)
@given(data=st.data())
def test_configs_of_exported_folders(attempt, exported, data):
    place, config = exported
    (place / "config.json").write_text(json.dumps(data.draw(mutated(config))))
    predictor = attempt("config.json", lambda: Predictor.from_pretrained(place))
    (place / "config.json").write_bytes(data.draw(damaged(json.dumps(config).encode())))
    for found in (predictor, attempt("config.json", lambda: Predictor.from_pretrained(place))):
        if found is not None:
            assert is_image(IMAGE)
            assert found.preprocess(IMAGE).shape == (3, found.image_size, found.image_size)
            assert np.isfinite(found.preprocess(IMAGE)).all()


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
def test_feature_caches(attempt, folder, data):
    """A damaged file is made anew, to what it was."""
    (folder / "cached").mkdir(exist_ok=True)
    (folder / "cached" / "a.png").write_bytes(IMAGES["PNG"])
    images = find_images(folder / "cached")
    ((image,), _) = cache_features(images, PlainTeacher(), folder / "cache", GRID)
    file = data.draw(st.sampled_from([image.image, image.maps]))
    whole = file.read_bytes()
    file.write_bytes(data.draw(damaged(whole)))
    again, skipped = attempt("feature caches", lambda: cache_features(images, PlainTeacher(), folder / "cache", GRID))
    assert (again, skipped) == ([image], [])
    assert file.read_bytes() == whole
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
    values = PRESETS["default"].to_dict()
    (folder / "x.yaml").write_text(yaml.safe_dump(data.draw(mutated(values))))
    attempt("recipes", lambda: load_recipe(str(folder / "x.yaml")))
    (folder / "x.yaml").write_bytes(data.draw(damaged(yaml.safe_dump(values).encode())))
    attempt("recipes", lambda: load_recipe(str(folder / "x.yaml")))


PROMPTS = [
    {"image": "a.png", "x": 3, "y": 4},
    {"image": "a.png", "left": 1, "top": 2, "right": 30, "bottom": 20},
    {"image": "b.png", "points": [[1, 2], [3, 4]], "labels": [1, 0], "box": [1, 2, 3, 4]},
]
CSV = b"image,x,y\na.png,3,4\nb.png,5,6\n"


@bounded(150)
@given(data=st.data())
def test_prompts(attempt, folder, data):
    (folder / "p.json").write_text(json.dumps(data.draw(mutated(PROMPTS))))
    attempt("prompts, JSON", lambda: read_prompts(folder / "p.json"))
    (folder / "p.csv").write_bytes(data.draw(damaged(CSV)))
    attempt("prompts, CSV", lambda: read_prompts(folder / "p.csv"))


@bounded(100)
@given(data=st.data())
def test_prompts_of_a_stream(attempt, folder, predictor, data):
    """What is read, the predictor takes or refuses."""
    whole = {"boxes": [[1, 2, 20, 30], [2, 3, 9, 9]], "points": [[[1, 2]], [[3, 4]]], "labels": [[1], [0]]}
    (folder / "s.json").write_text(json.dumps(data.draw(mutated(whole))))
    prompts = attempt("prompts of a stream", lambda: Prompts.from_file(folder / "s.json"))
    if prompts is not None:
        predictor.set_image(IMAGE)
        attempt(
            "prompts of a stream, asked",
            lambda: predictor.predict_prompts(prompts.points, prompts.labels, prompts.boxes, multimask_output=False),
        )


@bounded(100)
@given(data=st.data())
def test_tables_of_prompts(attempt, folder, data):
    import pyarrow as pa
    from pyarrow import parquet

    (folder / "t.csv").write_bytes(data.draw(damaged(b"path,x,y,left,top,right,bottom\na,1,2,,,,\nb,,,1,2,3,4\n")))
    attempt("tables, CSV", lambda: read_prompt_table(folder / "t.csv"))
    out = pa.BufferOutputStream()
    parquet.write_table(pa.table({"path": ["a", "b"], "box": [[1.0, 2.0, 3.0, 4.0]] * 2}), out)
    (folder / "t.parquet").write_bytes(data.draw(damaged(bytes(out.getvalue()))))
    found = attempt("tables, Parquet", lambda: read_prompt_table(folder / "t.parquet"))
    assert found is None or all(isinstance(name, str) for name in found)


@pytest.fixture(scope="module")
def dataset(folder):
    return draw_dataset(folder / "data", count=1)


@bounded(120)
@given(data=st.data())
def test_annotations(attempt, dataset, folder, data):
    coco = json.loads((dataset / "annotations.json").read_text())
    if data.draw(st.booleans()):
        (folder / "a.json").write_text(json.dumps(data.draw(mutated(coco))))
    else:
        (folder / "a.json").write_bytes(data.draw(damaged(json.dumps(coco).encode())))

    def measure():
        task = LabelledDataset(folder / "a.json", dataset / "images", Protocol(prompts=("box",)))
        return [row for name in task.images() for row in task.measure(PlainPredictor(), name)]

    for row in attempt("annotations", measure) or []:
        assert 0 <= row["iou"] <= 1


@bounded(60)
@given(data=st.data())
def test_detections(attempt, dataset, folder, data):
    whole = [{"image_id": 10, "category_id": 1, "bbox": [1, 2, 30, 20], "score": 0.5}]
    (folder / "d.json").write_text(json.dumps(data.draw(mutated(whole))))

    def measure():
        task = DetectionDataset(folder / "d.json", dataset / "annotations.json", dataset / "images", Protocol())
        return [row for name in task.images() for row in task.measure(PlainPredictor(), name)]

    attempt("detections", measure)


@pytest.fixture(scope="module")
def whole_result(dataset, folder):
    task = LabelledDataset(dataset / "annotations.json", dataset / "images", Protocol(prompts=("box",)))
    evaluate(task, Model(PlainPredictor(), "plain"), folder / "r.json")
    return json.loads((folder / "r.json").read_text())


@bounded(120)
@given(data=st.data())
def test_results(attempt, whole_result, folder, data):
    """What is read can be summed up."""
    (folder / "r.json").write_text(json.dumps(data.draw(mutated(whole_result))))
    result = attempt("results", lambda: load_result(folder / "r.json"))
    assert result is None or isinstance(result, Result)
    if result is not None:
        attempt("results, summed up", lambda: summary_text(result))
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
        evaluate(task, Model(Interrupted(), "plain"), output)
    (parts / "0.jsonl").write_bytes(data.draw(damaged((parts / "0.jsonl").read_bytes())))
    result = attempt("killed evaluations", lambda: evaluate(task, Model(PlainPredictor(), "plain"), output))
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
