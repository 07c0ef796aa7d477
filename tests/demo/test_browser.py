"""The page in a real browser: Debian's Chromium, without a window, against `groupmix-sam demo` in a process of its own.

With GROUPMIX_SAM_SCREENSHOTS=docs/images the images of the docs are written.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from PIL import Image
from segment_anything import SamPredictor

from groupmix_sam import build_sam_groupmix
from groupmix_sam.annotations import read_annotations
from groupmix_sam.images import find_images, read_image
from groupmix_sam.inference import Predictor
from groupmix_sam.masks import decode_rle, mask_iou
from groupmix_sam.visualize import COLORS, draw_masks
from groupmix_sam.weights import save_weights

from ..conftest import SHARED
from ..graphs import write_folder

pytest.importorskip("gradio", reason="the page needs groupmix-sam[demo]")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")

ROOT = Path(__file__).parents[2]
COFFEE = ROOT / "examples" / "coffee.jpg"
SPOON = (365, 290)
BOX = (170, 16, 420, 312)
SHOWN = (1024, 683)
MOBILE_SAM = SHARED / "weights" / "mobile_sam.safetensors"
PATIENCE = 180_000  # milliseconds that a model may take on a machine that does other instances, too
sync_api.expect.set_options(timeout=PATIENCE)


def command(*args):
    return [sys.executable, "-m", "groupmix_sam", *map(str, args)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder for ONNX Runtime, written by hand, as an export takes half a minute."""
    return write_folder(tmp_path_factory.mktemp("demo") / "exported")


@pytest.fixture(scope="module")
def weights(sam, tmp_path_factory):
    """The tiny Sam's weights."""
    return save_weights(sam, tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """The folder that the page saves labels in."""
    return tmp_path_factory.mktemp("labels")


@pytest.fixture(scope="module")
def url(exported, weights, labels):
    """The page's address. Its port is not the one asked for, at which something listens."""
    reference = ("--reference", MOBILE_SAM) if MOBILE_SAM.is_file() else ()
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        models = [argument for name in ("default", exported, "fast", weights) for argument in ("--checkpoint", name)]
        args = command("demo", "--port", port, *models, *reference, "--labels", labels, "--minutes", 0.001)
        pipe = subprocess.PIPE

        def heed() -> None:
            """Let Ctrl-C end it, also where the tests run in a shell's background, which ignores it for all below."""
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        with subprocess.Popen(args, stdout=pipe, stderr=subprocess.STDOUT, text=True, preexec_fn=heed) as process:
            try:
                assert process.stdout.readline() == f"port {port} is taken\n"
                found = re.match(r"open (http://127\.0\.0\.1:(\d+)) in a browser", process.stdout.readline())
                assert int(found[2]) > port
                yield found[1]
            finally:
                process.send_signal(signal.SIGINT)
                try:
                    rest = process.communicate(timeout=PATIENCE / 1000)[0]
                finally:
                    process.kill()  # else one that did not end would be waited for for ever
    assert "Traceback" not in rest
    assert process.returncode == 0


@pytest.fixture(scope="module")
def browser():
    options = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


class Visitor:
    """A tab of its own session."""

    def __init__(self, browser, url, **options):
        self.requests = []
        self.page = browser.new_page(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.says("Start with an image")

    def says(self, text):
        sync_api.expect(self.page.locator("#hint")).to_contain_text(text)

    def covers(self, mask):
        """Wait until the page says that the mask covers as much of the image as this one."""
        script = """share => {
            const found = document.querySelector("#hint").innerText.match(/covers ([0-9.]+) %/);
            return found && Math.abs(found[1] - share) < 0.25;
        }"""
        self.page.wait_for_function(script, arg=100 * mask.mean())

    def give(self, path):
        self.page.set_input_files("#image input[type=file]", path)

    def sets(self, kind):
        self.page.locator("#kind").get_by_text(kind).click()

    def click(self, x, y, name="image"):
        """Click on a pixel of the coffee, wherever it is on the screen."""
        # The page's own image, which may come some time after the words about it.
        script = f"shown => [...document.querySelectorAll('#{name} img')].some(image => image.naturalWidth == shown)"
        self.page.wait_for_function(script, arg=SHOWN[0])
        image = self.page.locator(f"#{name} img").first
        box = image.bounding_box()
        natural = image.evaluate("image => [image.naturalWidth, image.naturalHeight]")
        assert tuple(natural) == SHOWN
        scale = min(box["width"] / SHOWN[0], box["height"] / SHOWN[1], 1)
        left, top = box["x"] + (box["width"] - SHOWN[0] * scale) / 2, box["y"] + (box["height"] - SHOWN[1] * scale) / 2
        self.page.mouse.click(left + (x + 0.5) / 600 * SHOWN[0] * scale, top + (y + 0.5) / 400 * SHOWN[1] * scale)

    def shown(self, name="image"):
        """Return the image that the browser has, as floats."""
        source = self.page.locator(f"#{name} img").first.get_attribute("src")
        return np.asarray(Image.open(BytesIO(self.page.request.get(source).body())), dtype=np.float32)

    def until(self, condition):
        """Wait for what the browser shows, which may come some time after the words about it."""
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < PATIENCE / 1000
            self.page.wait_for_timeout(100)

    def saved(self, button):
        with self.page.expect_download() as download:
            self.page.locator(f"#{button}").click()
        assert download.value.suggested_filename == f"{button.removeprefix('save-')}.png"
        return np.asarray(Image.open(download.value.path()))

    def scored(self, scores):
        """Wait until the page says these three scores."""
        script = """scores => {
            const found = [...document.querySelector("#masks").innerText.matchAll(/[0-9]: ([0-9.]+)/g)].map(match => match[1]);
            return found.length == 3 && found.every((score, i) => Math.abs(score - scores[i]) < 0.015);
        }"""
        self.page.wait_for_function(script, arg=scores.tolist())

    def screenshot(self, name):
        """Write what the page shows for the docs, in few colours, if they ask for it; without what --labels adds."""
        if "GROUPMIX_SAM_SCREENSHOTS" in os.environ:
            self.page.add_style_tag(content="#labels { display: none }")
            self.page.wait_for_timeout(1000)  # for what fades in and out
            image = Image.open(BytesIO(self.page.screenshot())).convert("RGB")
            image = image.crop((0, 0, image.width, 596))  # above the times, which mean nothing while tests run
            image = image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            image.save(Path(os.environ["GROUPMIX_SAM_SCREENSHOTS"]) / f"{name}.png", optimize=True)

    def close(self):
        """Close the tab, which must have asked this machine alone."""
        self.page.close()
        assert {urlsplit(request).hostname for request in self.requests if request.startswith("http")} == {"127.0.0.1"}


@pytest.fixture
def visitor(browser, url):
    visitor = Visitor(browser, url)
    yield visitor
    visitor.close()


@pytest.fixture(scope="module")
def expected():
    """SamPredictor, which has seen the coffee."""
    predictor = SamPredictor(build_sam_groupmix())
    predictor.set_image(read_image(COFFEE))
    return predictor


def best(predictor, **prompt):
    """Return the mask with the highest score, and all three scores."""
    masks, scores, _ = predictor.predict(**prompt)
    return masks[scores.argmax()], scores


def drawn_mask(shown, **prompt):
    """Return the mask that is drawn over the coffee, and where it can be told: not where the prompt is drawn, or near it."""
    plain = np.asarray(Image.open(COFFEE).resize(SHOWN, Image.Resampling.BILINEAR))
    tinted = 0.5 * plain + 0.5 * np.array(COLORS[0])
    mask = np.abs(shown - tinted).sum(2) < np.abs(shown - plain).sum(2)
    scaled = {name: np.asarray(value, dtype=np.float64) * SHOWN[0] / 600 for name, value in prompt.items()}
    prompted = (np.asarray(draw_masks(plain, [], **scaled)) != plain).any(2)
    rows, columns = np.nonzero(prompted)
    near = np.zeros_like(mask)
    for y in range(-12, 13, 4):
        for x in range(-12, 13, 4):
            near[np.clip(rows + y, 0, SHOWN[1] - 1), np.clip(columns + x, 0, SHOWN[0] - 1)] = True
    return mask, ~near


def same_as_shown(mask, shown, **prompt):
    found, told = drawn_mask(shown, **prompt)
    wanted = np.asarray(Image.fromarray(mask).resize(SHOWN, Image.Resampling.NEAREST))
    return mask_iou(found & told, wanted & told)


def test_a_click_shows_what_sam_predictor_says(visitor, expected):
    visitor.screenshot("demo_start")
    visitor.give(COFFEE)
    visitor.says("600 x 400 pixels. Click on what you want.")
    visitor.click(*SPOON)
    mask, scores = best(expected, point_coords=np.array([SPOON]), point_labels=np.array([1]))
    visitor.covers(mask)
    visitor.scored(scores)
    saved = visitor.saved("save-mask")
    assert set(np.unique(saved)) == {0, 255}
    assert mask_iou(saved == 255, mask) >= 0.99
    visitor.until(lambda: same_as_shown(mask, visitor.shown(), points=[SPOON]) >= 0.99)
    overlay = draw_masks(read_image(COFFEE), [saved == 255], points=np.array([SPOON]))
    assert np.abs(visitor.saved("save-overlay") - np.asarray(overlay, dtype=np.float32)).mean() < 0.5
    times = visitor.page.locator("#times").inner_text()
    assert re.search(r"default: PyTorch fp32, 1024 px\s+encoder \d+ ms once an image, decoder \d+ ms each click", times)
    visitor.screenshot("demo_point")
    # Another of the three masks.
    worst = int(scores.argmin())
    visitor.page.locator("#masks label").nth(worst).click()
    other = expected.predict(np.array([SPOON]), np.array([1]))[0][worst]
    visitor.covers(other)
    assert mask_iou(visitor.saved("save-mask") == 255, other) >= 0.98
    # A background point, taken back by undo; then clear.
    visitor.sets("background")
    visitor.click(275, 130)
    coords, labels = np.array([SPOON, (275, 130)]), np.array([1, 0])
    both, other_scores = best(expected, point_coords=coords, point_labels=labels)
    visitor.scored(other_scores)
    visitor.covers(both)
    assert mask_iou(visitor.saved("save-mask") == 255, both) >= 0.99
    visitor.page.locator("#undo").click()
    visitor.scored(scores)
    visitor.until(lambda: same_as_shown(mask, visitor.shown(), points=[SPOON]) >= 0.99)
    visitor.page.locator("#clear").click()
    visitor.says("Click on what you want.")
    sync_api.expect(visitor.page.locator("#masks")).to_have_count(0)
    sync_api.expect(visitor.page.locator("#save-mask")).to_be_disabled()
    visitor.until(lambda: drawn_mask(visitor.shown())[0].mean() <= 0.005)
    # The image is taken away.
    visitor.page.locator("#image").get_by_label("Remove Image").click()
    visitor.says("Start with an image")


def test_a_phone_has_room_for_it(browser, url, expected):
    """Nothing lies beyond the edge, and a tap is where the finger is."""
    visitor = Visitor(browser, url, viewport={"width": 390, "height": 844})
    visitor.give(COFFEE)
    visitor.says("Click on what you want.")
    visitor.click(*SPOON)
    mask, scores = best(expected, point_coords=np.array([SPOON]), point_labels=np.array([1]))
    visitor.covers(mask)
    visitor.scored(scores)
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390
    visitor.screenshot("demo_phone")
    visitor.close()


def test_a_box_is_two_clicks_and_models_are_switched(visitor, expected, exported):
    visitor.give(COFFEE)
    visitor.says("Click on what you want.")
    visitor.sets("box's corner")
    visitor.click(BOX[2], BOX[1])
    visitor.says("Corner at")
    corner = [int(number) for number in re.findall(r"\d+", visitor.page.locator("#hint").inner_text())]
    assert corner == pytest.approx([BOX[2], BOX[1]], abs=1)
    visitor.click(BOX[0], BOX[3])
    mask, scores = best(expected, box=np.array(BOX))
    visitor.covers(mask)
    visitor.scored(scores)
    assert mask_iou(visitor.saved("save-mask") == 255, mask) >= 0.99
    visitor.until(lambda: same_as_shown(mask, visitor.shown(), box=BOX) >= 0.99)
    visitor.page.locator("#model input").click()
    visitor.page.get_by_role("option", name=f"{exported}: ONNX Runtime fp32, 256 px").click()
    sync_api.expect(visitor.page.locator("#times")).to_contain_text("ONNX Runtime fp32, 256 px")
    runtime = Predictor.from_pretrained(exported, threads=1)
    runtime.set_image(read_image(COFFEE))
    other, _ = best(runtime, box=np.array(BOX))
    assert mask_iou(visitor.saved("save-mask") == 255, other) >= 0.98  # its outlines are frayed


@pytest.mark.skipif(not MOBILE_SAM.is_file(), reason="needs ../shared, the developers' folder of real weights and photos")
def test_mobile_sam_is_beside(visitor, expected):
    visitor.give(COFFEE)
    visitor.says("Click on what you want.")
    visitor.click(*SPOON)
    visitor.says("The mask covers")
    visitor.page.locator("#compare input").click()
    visitor.page.get_by_role("option", name="MobileSAM", exact=True).click()
    reference = SamPredictor(build_sam_groupmix(MOBILE_SAM, encoder="sam_tiny_vit_5m"))
    reference.set_image(read_image(COFFEE))
    prompt = np.array([SPOON]), np.array([1])
    ours, scores, _ = expected.predict(*prompt)
    theirs, _ = best(reference, point_coords=prompt[0], point_labels=prompt[1])
    visitor.says("IoU with the mask of MobileSAM: ")
    told = float(visitor.page.locator("#hint").inner_text().split()[-1])
    assert told == pytest.approx(mask_iou(ours[scores.argmax()], theirs), abs=0.01)
    small = 0.98  # with much outline
    visitor.until(lambda: same_as_shown(theirs, visitor.shown("beside"), points=[SPOON]) >= small)
    visitor.screenshot("demo_compare")


def test_a_model_is_adapted_to_labels_and_compared(visitor, weights, labels, tmp_path):
    """Masks are saved as labels, `adapt` runs on them, and the next image shows the masks before and after."""
    page = visitor.page
    page.locator("#model input").click()
    page.get_by_role("option", name=f"{weights}: PyTorch fp32, 256 px").click()
    read = read_image(COFFEE)
    Image.fromarray(read[:, ::-1]).save(tmp_path / "turned.png")
    count, state, saved = page.locator("#label-count"), page.locator("#adapt-state"), []
    for number, path in enumerate((COFFEE, tmp_path / "turned.png"), 1):
        visitor.give(path)
        visitor.says("Click on what you want.")
        sync_api.expect(count).to_contain_text("Labels on this image: 0")
        sync_api.expect(page.locator("#save-label")).to_be_disabled()
        visitor.click(*SPOON)
        visitor.says("The mask covers")
        saved.append(visitor.saved("save-mask") == 255)
        page.locator("#save-label").click()
        sync_api.expect(count).to_have_text(f"Labels on this image: 1; in all {number}, on {number} images.")
        visitor.page.locator("#image").get_by_label("Remove Image").click()
        visitor.says("Start with an image")
    images = sorted(find_images(labels / "images"), key=str)
    matched = read_annotations(labels / "annotations.json", images).images
    for image, pixels, mask in zip(images, (read, read[:, ::-1]), saved, strict=True):
        assert np.array_equal(read_image(image.path), pixels)
        assert np.array_equal(matched[image].instances[0].mask, mask)
    page.locator("#adapt").click()
    sync_api.expect(state).to_contain_text("Adapted. IoU with the labels of 1 held-out images: by box")
    adapted = labels / "runs" / "1" / "weights"
    sync_api.expect(page.locator("#model input")).to_have_value(f"{adapted}: PyTorch fp32, 256 px")
    sync_api.expect(page.locator("#compare input")).to_have_value(f"{weights}: PyTorch fp32, 256 px")
    visitor.give(COFFEE)
    visitor.says("Click on what you want.")
    visitor.click(*SPOON)
    visitor.says(f"IoU with the mask of {weights}: PyTorch fp32, 256 px: ")
    after, before = (SamPredictor(build_sam_groupmix(path)) for path in (adapted, weights))
    found = []
    for predictor in (after, before):
        predictor.set_image(read)
        found.append(best(predictor, point_coords=np.array([SPOON]), point_labels=np.array([1]))[0])
    told = float(page.locator("#hint").inner_text().split()[-1])
    assert told == pytest.approx(mask_iou(*found), abs=0.02)
    assert mask_iou(visitor.saved("save-mask") == 255, found[0]) >= 0.95  # of noise, with long outlines
    sync_api.expect(page.locator("#beside")).to_contain_text(f"{weights}: PyTorch fp32, 256 px")
    sync_api.expect(page.locator("#beside img")).to_be_visible()
    page.locator("#remove-labels").click()
    sync_api.expect(count).to_have_text("Labels on this image: 0; in all 1, on 1 images.")
    page.locator("#adapt").click()
    toast = page.get_by_test_id("toast-body").filter(has_text="labelled images: 1. Label 2 or more")
    sync_api.expect(toast).to_be_visible(timeout=PATIENCE)


def test_broken_and_huge_images_are_told_of(visitor, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(COFFEE.read_bytes()[:20_000])
    (tmp_path / "text.jpg").write_bytes(b"no image")
    Image.new("L", (6000, 5000)).save(tmp_path / "huge.png")
    (tmp_path / "heavy.png").write_bytes(bytes(41 * 1024 * 1024))
    messages = {
        "cut.jpg": "cut.jpg cannot be read as an image",
        "text.jpg": "text.jpg cannot be read as an image: convert it to PNG or JPEG.",
        "huge.png": "huge.png has 6000 x 5000 pixels, more than 25 million: scale it down first.",
        "heavy.png": "maximum allowed size of 40",
    }
    for name, message in messages.items():
        visitor.give(tmp_path / name)
        toast = visitor.page.get_by_test_id("toast-body").filter(has_text=message)
        sync_api.expect(toast).to_be_visible(timeout=PATIENCE)
        visitor.says("Start with an image")
        sync_api.expect(visitor.page.locator("#image img")).to_have_count(0)
    visitor.give(COFFEE)  # nothing of it lasts
    visitor.says("600 x 400 pixels")


def test_two_visitors_at_once_have_prompts_of_their_own(browser, url, expected):
    prompts = [SPOON, (275, 130)]
    visitors = [Visitor(browser, url, viewport={"width": 800, "height": 900}) for _ in prompts]
    for visitor in visitors:
        visitor.give(COFFEE)
    for visitor in visitors:
        visitor.says("Click on what you want.")
    for visitor, prompt in zip(visitors, prompts, strict=True):
        visitor.click(*prompt)
    for visitor, prompt in zip(visitors, prompts, strict=True):
        visitor.says("The mask covers")
        mask, _ = best(expected, point_coords=np.array([prompt]), point_labels=np.array([1]))
        assert mask_iou(visitor.saved("save-mask") == 255, mask) >= 0.99
        assert visitor.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        visitor.close()


def test_the_camera_gives_a_image(visitor):
    visitor.page.locator("#image").get_by_label("Capture from camera").click()
    visitor.page.get_by_text("Click to Access Webcam").click()
    # Gradio's button does nothing, and says nothing, before the first frame.
    visitor.page.wait_for_function("() => document.querySelector('#image video')?.videoWidth > 0")
    visitor.page.locator("#image").get_by_label("capture photo").click()
    visitor.says("pixels. Click on what you want.")


STEPS = 6


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The coffee, which moves to the right by 8 pixels a frame."""
    path = tmp_path_factory.mktemp("clip") / "coffee.webm"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"VP80"), 10, (600, 400))
    photo = read_image(COFFEE)[:, :, ::-1]
    for i in range(STEPS):
        video.write(np.roll(photo, 8 * i, axis=1))
    video.release()
    return path


def test_an_object_of_a_clip_is_followed(visitor, clip):
    page = visitor.page
    page.get_by_role("tab", name="Video").click()
    hint = page.locator("#video-hint")
    page.locator("#video-model input").click()
    page.get_by_role("option", name="fast: PyTorch fp32, 512 px").click()
    page.set_input_files("#clip input[type=file]", clip)
    sync_api.expect(hint).to_contain_text("600 x 400 pixels. Click on what you want.")
    page.locator("#video-kind").get_by_text("box's corner").click()
    visitor.click(*BOX[:2], name="frame")
    sync_api.expect(hint).to_contain_text("Corner at")
    visitor.click(*BOX[2:], name="frame")
    sync_api.expect(hint).to_contain_text("The mask covers")
    page.locator("#follow").click()
    sync_api.expect(page.locator("#save-video")).to_be_enabled()
    said = hint.inner_text()
    assert re.fullmatch(rf"Frame {STEPS}: tracked, [0-9.]+ frames/s, 100 % of the pixels encoded\.", said), said
    visitor.screenshot("demo_video")
    with page.expect_download() as download:
        page.locator("#save-masks").click()
    assert download.value.suggested_filename == "masks.jsonl"
    records = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert [record["frame"] for record in records] == list(range(STEPS))
    masks = [decode_rle(record["objects"][0]["mask"]) for record in records]
    assert 0.15 < masks[0].mean() < 0.30, "the cup is about a fifth of the photo"
    for i, mask in enumerate(masks):
        assert mask_iou(mask, np.roll(masks[0], 8 * i, axis=1)) > 0.9
    with page.expect_download() as download:
        page.locator("#save-video").click()
    assert download.value.suggested_filename == "overlay.mp4"
    video = cv2.VideoCapture(str(download.value.path()))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == STEPS
    # What cannot be read takes the place of nothing.
    page.locator("#video-clear").click()
    sync_api.expect(hint).to_contain_text("Click on what you want.")
    sync_api.expect(page.locator("#follow")).to_be_disabled()
