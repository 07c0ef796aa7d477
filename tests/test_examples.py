"""The examples as they stand: each script and the notebook, with the weights that ship where that is quick."""

import csv
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import cv2
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from segment_anything import SamPredictor

import groupmix_sam.distill  # noqa: F401
from groupmix_sam import build_sam_groupmix
from groupmix_sam.evaluate import read_prompts
from groupmix_sam.images import read_image
from groupmix_sam.inference import Predictor
from groupmix_sam.masks import mask_iou
from groupmix_sam.weights import save_weights

from .distill.conftest import save_mobile_sam
from .live.fake import GREEN, RED, ColourPredictor, scene

EXAMPLES = Path(__file__).parents[1] / "examples"
COFFEE = EXAMPLES / "coffee.jpg"


def load(script):
    """Import a script, which then does nothing."""
    spec = importlib.util.spec_from_file_location(script, EXAMPLES / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a script with arguments in an empty folder; return its globals and what it printed."""

    def run(script, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        found = runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return found, capsys.readouterr().out

    return run


def test_quickstart(run):
    found, out = run("quickstart.py")
    assert out.endswith("wrote quickstart.png\n")
    overlay, photo = read_image("quickstart.png").astype(int), read_image(COFFEE).astype(int)
    changed = np.abs(overlay - photo).sum(-1) > 30
    assert changed[130, 275], "the cup is tinted"
    assert changed[300, 365], "the spoon is tinted"
    assert not changed[390:, :50].any(), "the table is not"
    assert 0.15 < found["cup"].mean() < 0.30, "the cup is about a fifth of the photo"
    assert f"{100 * found['cup'].mean():.1f} % of the image" in out


def test_timm_features(run):
    found, out = run("timm_features.py")
    weights = found["encoder"].state_dict()
    for name, value in found["backbone"].state_dict().items():
        assert value.equal(weights[name.removeprefix("model.")]), "the maps are the trained encoder's"
    assert "(1, 3, 688, 1024) -> (1, 256, 43, 64)" in out
    assert "stages.3: stride 16, (1, 160, 43, 64)" in out
    sheet = read_image("features.png")
    assert sheet.shape == (400, 1200, 3)
    heat = sheet[:, 600:, 0]
    assert heat[290, 365] > 230, "a place is like itself"
    assert heat[350:, :100].max() < 60, "the table is not like a spoon"


def test_adapt_to_your_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr("groupmix_sam.distill.adaptation.POINTS", 1)  # to be quick
    teacher, weights = save_mobile_sam(tmp_path / "mobile_sam.pt"), tmp_path / "tiny.safetensors"
    save_weights(build_sam_groupmix(None, encoder="gmf_sam_test"), weights)
    tiny = ["--checkpoint", weights, "--minutes", 0.001, "--count", 2]
    _, out = run("adapt_to_your_line.py", "--teacher", teacher, *tiny)
    assert "IoU with the teacher on frames that were held out" in out
    ious = [float(iou) for iou in re.findall(r"by box, (?:before|after): (.*)", out)]
    image, parts = load("adapt_to_your_line").draw_frame(1000)  # the first that it measures on, and with two the only one
    for checkpoint, iou in zip((weights, "runs/line/weights"), ious, strict=True):
        predictor = Predictor(build_sam_groupmix(checkpoint))
        predictor.set_image(image)
        masks = [predictor.predict(box=np.array(box), multimask_output=False)[0][0] for box, _ in parts]
        expected = np.mean([mask_iou(mask, truth) for mask, (_, truth) in zip(masks, parts, strict=True)])
        assert iou == pytest.approx(expected, abs=2e-3)
    assert read_image("runs/line/masks.png").shape == (360, 480, 3)
    assert len(list(Path("runs/line_frames").iterdir())) == 2
    assert build_sam_groupmix("runs/line/weights").image_encoder.img_size == 256, "as the weights said"


def test_drawn_frames_have_the_masks_that_they_show():
    draw = load("adapt_to_your_line").draw_frame
    image, parts = draw(0)
    again, _ = draw(0)
    assert np.array_equal(image, again)
    assert len(parts) == 5
    for (left, top, right, bottom), mask in parts:
        assert mask[top:bottom, left:right].sum() == mask.sum(), "the box holds all of it"
        assert mask[top, left:right].any(), "and is tight"
        assert mask[bottom - 1, left:right].any()
        assert image[mask].mean() > image.mean() + 20, "parts are brighter than the belt"


def test_worker_hands_from_given_centres(run):
    run("worker_hands.py", COFFEE, "--hand", "365,290", "--hand", "360,300")
    with open("hands/hands.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["image", "x", "y"],
            ["coffee.jpg", "365.0", "290.0"],
            ["coffee.jpg", "360.0", "300.0"],
        ]
    assert list(read_prompts("hands/hands.csv")) == ["coffee.jpg"], "evaluate reads it"
    overlay, photo = read_image("hands/coffee_hands.png").astype(int), read_image(COFFEE).astype(int)
    changed = np.abs(overlay - photo).sum(-1) > 30
    assert changed[300, 365], "the spoon is tinted"
    assert not changed[390:, :50].any(), "the table is not"


def test_worker_hands_says_how_to_get_a_detector(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(SystemExit, match=r"mediapipe 0\.10\.21 is not installed"):
        run("worker_hands.py", COFFEE)


def test_worker_hands_by_mediapipe(shared, run):
    pytest.importorskip("mediapipe.python.solutions.hands", reason="needs mediapipe 0.10.21, which needs NumPy 1")
    (photo,) = (shared / "data" / "eval" / "tools" / "images").glob("2023-08-17_12-11-01_png*")
    run("worker_hands.py", photo)
    (prompt,) = read_prompts("hands/hands.csv")[photo.name]
    x, y = prompt.points[0]
    assert 80 < x < 190, "the one hand is at the upper left"
    assert y < 80


BRUSHES = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image" smart="false"><Label value="cup"/><Label value="spoon"/></BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="cup"/><Label value="spoon"/></KeyPointLabels>
  <RectangleLabels name="box" toName="image" smart="true"><Label value="cup"/><Label value="spoon"/></RectangleLabels>
</View>"""
# As Label Studio has them, in percent of the coffee's 600 x 400 pixels.
BOX = {"x": 170 / 6, "y": 16 / 4, "width": 250 / 6, "height": 296 / 4, "rotation": 0, "rectanglelabels": ["cup"]}


def point(x, y, **region):
    value = {"x": (x + 0.5) / 6, "y": (y + 0.5) / 4, "width": 0.3, "keypointlabels": ["spoon"]}
    return {"type": "keypointlabels", "from_name": "point", "to_name": "image", "value": value, **region}


def task(*regions, image="/data/local-files/?d=line%201/coffee.jpg", config=BRUSHES):
    """Return what Label Studio 1.23 sends to /predict."""
    context = {"result": list(regions)} if regions else None
    params = {"login": None, "password": None, "context": context}
    return {"tasks": [{"id": 1, "data": {"image": image}}], "project": "1.2", "label_config": config, "params": params}


def unpack(rle):
    """Return the bytes that @thi.ng/rle-pack packed, read bit by bit as its `decode` does."""
    bits, at = "".join(f"{byte:08b}" for byte in rle), 0

    def read(width):
        nonlocal at
        at += width
        return int(bits[at - width : at], 2)

    count, width = read(32), read(5) + 1
    widths, out = [read(4) + 1 for _ in range(4)], []
    while len(out) < count:
        repeated, length = read(1), read(widths[read(2)]) + 1
        out += [read(width)] * length if repeated else [read(width) for _ in range(length)]
    return np.array(out)


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    """Start the backend for a folder of local files and one of uploads; return its address, and a function that asks it."""
    folder = tmp_path_factory.mktemp("studio")
    for place in ("files/line 1", "studio/media/upload/1"):
        (folder / place).mkdir(parents=True)
        shutil.copy(COFFEE, folder / place)
    for place in (folder, folder / "studio"):
        shutil.copy(COFFEE, place / "secret.jpg")
    (folder / "files" / "link.jpg").symlink_to(folder / "secret.jpg")
    (folder / "files" / "text.jpg").write_text("no image")
    command = [sys.executable, EXAMPLES / "label_backend.py", folder / "studio", "--files", folder / "files", "--port", "0"]
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env) as process:
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]

            def ask(path, content=None, **headers):
                body = content if isinstance(content, bytes | None) else json.dumps(content).encode()
                request = Request(address + path, body, {"Content-Type": "application/json", **headers})
                try:
                    with urlopen(request, timeout=120) as answer:
                        return answer.status, json.loads(answer.read())
                except HTTPError as e:
                    with e:
                        return e.code, e.reason

            yield ask
        finally:
            process.kill()


def test_label_backend_gives_sam_predictors_mask(backend):
    assert backend("/health")[0] == 200
    assert backend("/setup", {"project": "1.2", "schema": BRUSHES}) == (
        200,
        {"model_version": "default: PyTorch fp32, 1024 px"},
    )
    assert backend("/webhook", {"action": "ANNOTATION_CREATED"})[0] == 200
    assert backend("/predict", task())[1]["results"] == [[]], "nobody has asked for anything"
    expected = SamPredictor(build_sam_groupmix())
    expected.set_image(read_image(COFFEE))
    box = {"type": "rectanglelabels", "value": BOX}
    # The same one, from its upper right corner.
    turned = {**BOX, "x": 420 / 6, "width": 296 / 6, "height": 250 / 4, "rotation": 90}
    both = (point(365, 290), point(275, 130, is_positive=False))
    prompts = {
        "point": ((point(365, 290),), {"point_coords": np.array([[365, 290]]), "point_labels": np.array([1])}),
        "points": (both, {"point_coords": np.array([[365, 290], [275, 130]]), "point_labels": np.array([1, 0])}),
        "box": ((box,), {"box": np.array([170, 16, 420, 312])}),
        "turned box": (({**box, "value": turned},), {"box": np.array([170, 16, 420, 312])}),
    }
    for name, (regions, prompt) in prompts.items():
        masks, scores, _ = expected.predict(**prompt, multimask_output=name == "point")
        image = (
            "http://localhost:8080/data/upload/1/coffee.jpg" if "box" in name else "/data/local-files/?d=line%201/coffee.jpg"
        )
        status, answer = backend("/predict", task(*regions, image=image))
        assert status == 200, answer
        (region,) = answer["results"][0]["result"]
        assert (region["from_name"], region["to_name"], region["type"]) == ("brush", "image", "brushlabels")
        assert region["value"]["brushlabels"] == ["cup" if "box" in name else "spoon"]
        assert (region["original_width"], region["original_height"]) == (600, 400)
        assert region["score"] == pytest.approx(scores.max(), abs=0.01)
        pixels = unpack(region["value"]["rle"]).reshape(400, 600, 4)
        assert set(np.unique(pixels)) == {0, 255}
        assert (pixels == pixels[:, :, :1]).all()
        assert mask_iou(pixels[:, :, 3] == 255, masks[scores.argmax()]) >= 0.99, name


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (task(point(9, 9), image="/data/local-files/?d=../secret.jpg"), "is not in the folder"),
        (task(point(9, 9), image="/data/local-files/?d=/etc/passwd"), "is not in the folder"),
        (task(point(9, 9), image="/data/local-files/?d=link.jpg"), "is not in the folder"),
        (task(point(9, 9), image="/data/upload/%2e%2e/%2e%2e/secret.jpg"), "is not in the folder"),
        (task(point(9, 9), image="https://example.com/coffee.jpg"), "the image is https://example.com/coffee.jpg"),
        (task(point(9, 9), image="file:///etc/passwd"), "the image is file:///etc/passwd"),
        (task(point(9, 9), image="/data/local-files/?d=no.jpg"), "there is no image"),
        (task(point(9, 9), image="/data/local-files/?d=text.jpg"), "cannot be read as an image"),
        (task(point(9, 9), image="/data/local-files/?d=a%00b%0d%0aX: y"), "this is no request of Label Studio's"),
        (task(point(700, 9)), "is outside"),
        (task(point(9, 9, image_rotation=90)), "not turned"),
        (task({"type": "brushlabels", "value": {}}), "the prompt is a brushlabels"),
        (task(point(9, 9), config=BRUSHES.replace("spoon", "fork")), "the brush has no label 'spoon'"),
        (task(point(9, 9), config=BRUSHES.replace("BrushLabels", "PolygonLabels")), "has no BrushLabels"),
        (task(point(9, 9), config='<!DOCTYPE x [<!ENTITY a "b">]>' + BRUSHES), "<!DOCTYPE"),
        ({"tasks": [], "params": {"context": {"result": [1]}}}, "this is no request of Label Studio's"),
        (b"[" * 100_000, "this is no request of Label Studio's"),
    ],
)
def test_label_backend_says_what_it_refuses(backend, request_, message):
    status, reason = backend("/predict", request_)
    assert status == 400
    assert message in reason
    assert backend("/health")[0] == 200


def test_label_backend_refuses_what_a_foreign_page_or_a_huge_body_would_be(backend):
    assert backend("/predict", task(point(9, 9)), **{"Content-Type": "text/plain"})[0] == 415
    assert backend("/predict", b"", **{"Content-Length": str(10**10)})[0] == 413


def test_brush_rle_of_any_mask():
    brush_rle = load("label_backend").brush_rle
    for shape, share in [((1, 1), 1), ((1, 1), 0), ((7, 5), 0.5), ((300, 200), 0), ((150, 199), 1), ((40, 30), 0.02)]:
        mask = np.random.default_rng(0).random(shape) < share
        assert np.array_equal(unpack(brush_rle(mask)).reshape(*shape, 4) == 255, np.repeat(mask[..., None], 4, 2))


def test_tour(tmp_path, monkeypatch):
    """The notebook runs, and prints and draws where the stored one does."""
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    kept = kinds(notebook)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # about progress bars
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    assert kinds(notebook) == kept
    assert sum(cell.count("execute_result") for cell in kept) == 5


def kinds(notebook):
    return [[output.output_type for output in cell.get("outputs", [])] for cell in notebook.cells]


def test_count_and_alarm(tmp_path, monkeypatch):
    """A red part crosses the middle, and a green hand goes into a zone and out again; by a predictor that knows colours."""
    video = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (160, 120))
    hand = [0, 6, 12, 18, 24, 30, 24, 18, 12, 6]  # its zone begins at x 40, and it is 24 wide
    for i, x in enumerate(hand):
        part = (45 + 6 * i, 70, 69 + 6 * i, 94)
        video.write(scene((RED, part), (GREEN, (x, 20, x + 24, 44)), seed=i)[:, :, ::-1])
    video.release()
    monkeypatch.setattr(Predictor, "from_pretrained", lambda *args, **options: ColourPredictor())
    told = []
    arguments = [str(tmp_path / "a.avi"), "--part", "45,70,69,94", "--hand", "0,20,24,44"]
    zone = "40,10,100,10,100,60,40,60"
    load("count_and_alarm").main([*arguments, "--line", "80,0,80,120", "--zone", zone], told.append)
    events = [json.loads(text) for text in told]
    (crossed,) = (event for event in events if "part" in event)
    # The middle is at 57 + 6 i.
    assert (crossed["part"], crossed["count"]) == (0, 1)
    assert 3 <= crossed["frame"] <= 5
    entered, left = (event for event in events if "hand" in event)
    assert (entered["hand"], entered["in_zone"], left["in_zone"]) == (1, True, False)
    assert 3 <= entered["frame"] <= 4
    assert 7 <= left["frame"] <= 8
    assert entered["pixels"] > 20
