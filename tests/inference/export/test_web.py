"""The page of `export web` in a real browser, Debian's Chromium, from a server that sends files and no headers of its own.

With GROUPMIX_SAM_SCREENSHOTS=docs/images the image of the docs is written.
"""

import functools
import http.server
import json
import os
import re
import shutil
import sys
import threading
import time
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from groupmix_sam import build_sam_groupmix
from groupmix_sam.annotations import from_coco
from groupmix_sam.annotations.index_mask import from_mask
from groupmix_sam.annotations.yolo import from_yolo
from groupmix_sam.cli import app
from groupmix_sam.errors import InvalidInputError, RuntimeUnavailableError
from groupmix_sam.images import ImageFile, read_image
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.export import web
from groupmix_sam.inference.mask_resize import neighbours, resize_blocks
from groupmix_sam.masks import encode_rle, mask_iou
from groupmix_sam.preprocess import resize, resized_size

from ...release import ALL
from ..conftest import draw

ROOT = Path(__file__).parents[3]
COFFEE = ROOT / "examples" / "coffee.jpg"
SPOON = (365, 290)
BOX = (170, 16, 420, 312)
CHROMIUM = shutil.which("chromium")
PATIENCE = 60_000  # milliseconds that a model may take on a machine that does other work, too
# A GPU that Chromium's SwiftShader imitates on the processor.
IMITATED_GPU = [
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-features=Vulkan",
    "--use-vulkan=swiftshader",
]


@pytest.fixture(scope="module")
def site(fast_graphs, tmp_path_factory):
    """The page with the fast weights, made once; its masks are compared below, and the report of the export elsewhere."""
    folder = tmp_path_factory.mktemp("web")
    if shutil.which("npm") is None:
        pytest.skip("the runtime comes by npm: apt-get install npm")
    try:
        package = web._npm_pack(folder)
    except RuntimeUnavailableError as e:
        pytest.skip(f"npm's registry is not to be reached: {e}")
    report = {"mean_iou": 1.0, "min_iou": 1.0, "low_iou": 1.0, "masks": 0, "images": 1, "each": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["groupmix_sam.inference.export.exporter"], "measure_parity", lambda *args: report)
        sam = build_sam_groupmix("fast")
        assert web.export_web(sam, folder / "site", [ImageFile(COFFEE)], runtime=package, graphs=fast_graphs) == report
    return folder / "site"


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


class Server:
    """A plain file server on this machine, which can be stopped."""

    def __init__(self, folder):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def server(site):
    server = Server(site)
    yield server
    server.stop()  # twice does no harm


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """A tab of its own profile, which waits for `patience` milliseconds."""

    def __init__(self, browser, url, patience=PATIENCE, **options):
        self.patience = patience
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(patience)
        self.requests, self.messages = [], []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.goto(url)
        self.says("Ready: open an image.")

    def says(self, text):
        from playwright.sync_api import expect

        expect(self.page.locator("#status")).to_contain_text(text, timeout=self.patience)
        return self.page.inner_text("#status")

    def open(self, path=COFFEE):
        self.page.set_input_files("#file", path)
        self.says("Click on an object, or drag a box around it.")

    def place(self, x, y):
        """Return where a pixel of the coffee is on the screen."""
        box = self.page.locator("#canvas").bounding_box()
        return box["x"] + (x + 0.5) / 600 * box["width"], box["y"] + (y + 0.5) / 400 * box["height"]

    def click(self, x, y):
        self.page.mouse.click(*self.place(x, y))

    def drag(self, x0, y0, x1, y1):
        self.page.mouse.move(*self.place(x0, y0))
        self.page.mouse.down()
        self.page.mouse.move(*self.place(x1, y1), steps=3)
        self.page.mouse.up()

    def says_share(self, number, mask):
        """Wait until the page says that an object covers as much of the image as this mask."""
        start = time.monotonic()
        while True:
            text = self.page.inner_text("#status")
            found = re.match(rf"Object {number}: its mask covers ([0-9.]+) %", text)
            if found and float(found[1]) == pytest.approx(100 * mask.mean(), abs=0.25):
                return
            assert time.monotonic() - start < self.patience / 1000, f"{text} and not {100 * mask.mean():.1f} %"
            self.page.wait_for_timeout(50)

    def saved(self, kind):
        with self.page.expect_download() as download:
            self.page.click(f"#save-{kind}")
        return download.value.suggested_filename, Path(download.value.path()).read_bytes()

    def masks(self):
        name, png = self.saved("png")
        assert name == "coffee_mask.png"
        return [instance.mask for instance in from_mask(Image.open(BytesIO(png)), COFFEE).instances]

    def close(self):
        """Close the tab, which must have asked this machine alone, and to which the browser must have refused nothing."""
        self.context.close()
        assert {urlsplit(url).hostname for url in self.requests if not url.startswith(("blob:", "data:"))} == {"127.0.0.1"}
        assert [text for text in self.messages if "Content Security Policy" in text or "Error" in text] == []


@pytest.fixture(scope="module")
def expected():
    """The predictor in PyTorch, which has seen the coffee."""
    predictor = Predictor.from_pretrained("fast", device="cpu")
    predictor.set_image(read_image(COFFEE))
    return predictor


@pytest.fixture(scope="module")
def visitor(browser, server):
    visitor = Visitor(browser, server.url)
    visitor.open()
    yield visitor
    visitor.close()


def test_a_click_gives_the_predictors_mask(visitor, expected):
    # The server sends no headers: the service worker does, and there are threads.
    assert visitor.page.evaluate("crossOriginIsolated")
    masks, _ = expected.predict_single_mask(np.array([[SPOON]]), np.ones((1, 1)))
    visitor.click(*SPOON)
    visitor.says_share(1, masks[0])
    (found,) = visitor.masks()
    assert mask_iou(found, masks[0]) >= 0.99
    threads = min(os.cpu_count() or 1, 8)
    times = visitor.page.inner_text("#times")
    assert f"WebAssembly, {threads} thread" in times
    assert re.search(r"Encoder: \d+ ms an image\. Decoder: \d+ ms a prompt\.", times)


def test_several_objects_undo_and_files(visitor, expected):
    """After the spoon a box, a point outside of it and another mask, taken back one by one; and what is downloaded."""
    spoon, _ = expected.predict_single_mask(np.array([[SPOON]]), np.ones((1, 1)))
    cup, _ = expected.predict_single_mask(boxes=np.array([BOX]))
    outside = (300, 180)
    both, _ = expected.predict_single_mask(np.array([[outside]]), np.zeros((1, 1)), np.array([BOX]))
    visitor.drag(*BOX)
    visitor.says_share(2, cup[0])
    visitor.page.keyboard.down("Shift")
    visitor.click(*outside)
    visitor.page.keyboard.up("Shift")
    visitor.says_share(2, both[0])
    visitor.page.click("#undo")
    visitor.says_share(2, cup[0])
    visitor.page.get_by_label("Class of object 1").fill("spoon")
    visitor.page.get_by_label("Class of object 1").press("Tab")
    name, content = visitor.saved("coco")
    assert name == "coffee.json"
    (image,) = from_coco(json.loads(content))
    assert (image.path.name, image.size) == ("coffee.jpg", (400, 600))
    assert [instance.category for instance in image.instances] == ["spoon", "object"]
    for instance, mask, annotation in zip(image.instances, (spoon[0], cup[0]), json.loads(content)["annotations"], strict=True):
        assert mask_iou(instance.mask, mask) >= 0.99
        assert annotation["segmentation"] == encode_rle(instance.mask)
        assert annotation["area"] == instance.area
        x0, y0, x1, y1 = instance.box
        assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert 0 < annotation["score"] <= 1
    name, content = visitor.saved("yolo")
    assert name == "coffee.txt"
    labels = from_yolo(content.decode(), COFFEE, image.size, ["spoon", "object"])
    assert [instance.category for instance in labels.instances] == ["spoon", "object"]
    assert all(mask_iou(a.mask, b.mask) >= 0.95 for a, b in zip(labels.instances, image.instances, strict=True))
    assert visitor.says("The classes are") == "The classes are 0: spoon, 1: object."
    # The spoon lies over the cup's box: the smaller object covers the larger one.
    small, large = visitor.masks()
    assert np.array_equal(small, image.instances[0].mask)
    assert np.array_equal(large, image.instances[1].mask & ~small)
    if "GROUPMIX_SAM_SCREENSHOTS" in os.environ:
        visitor.page.evaluate("document.querySelector('#times').hidden = true")  # they mean nothing while tests run
        shown = Image.open(BytesIO(visitor.page.screenshot())).convert("RGB").crop((0, 0, 1280, 750))
        shown = shown.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        shown.save(Path(os.environ["GROUPMIX_SAM_SCREENSHOTS"]) / "web.png", optimize=True)
    visitor.page.get_by_label("Remove object 2").click()
    visitor.says("Object 2 is removed.")
    assert len(visitor.masks()) == 1


def test_the_keyboard_alone_is_enough(visitor, expected):
    visitor.page.keyboard.press("n")
    visitor.page.focus("#canvas")
    for key in ("Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowDown", "Shift+ArrowDown", "Shift+ArrowDown"):
        visitor.page.keyboard.press(key)
    x, y = 299.5 + 60, 199.5 + 90
    visitor.says(f"Cross at {round(x)}, {round(y + 0.01)}.")
    visitor.page.keyboard.press("Enter")
    masks, scores, _ = expected.predict(np.array([(x, y)]), np.ones(1))
    best, second, _ = masks[np.argsort(-scores)]
    visitor.says_share(2, best)
    visitor.page.keyboard.press("m")
    visitor.says_share(2, second)
    visitor.page.keyboard.press("Control+z")
    visitor.says_share(2, best)
    visitor.page.keyboard.press("Control+z")
    visitor.page.keyboard.press("n")
    visitor.page.keyboard.press("b")
    visitor.says("opposite corner")
    visitor.page.keyboard.press("Shift+ArrowLeft")
    visitor.page.keyboard.press("Shift+ArrowUp")
    visitor.page.keyboard.press("b")
    boxed, _ = expected.predict_single_mask(boxes=np.array([(x - 30, y - 30, x, y)]))
    visitor.says_share(2, boxed[0])


def test_what_is_no_image_is_told_of(visitor, tmp_path):
    (tmp_path / "notes.jpg").write_bytes(b"no image")
    visitor.page.set_input_files("#file", tmp_path / "notes.jpg")
    visitor.says("notes.jpg cannot be read as an image: convert it to PNG or JPEG.")
    assert len(visitor.page.locator("#objects li").all()) == 2


def test_everyone_can_use_it(visitor):
    """Every control has a name, and text stands out from what is behind it."""
    names = visitor.page.evaluate(
        """() => [...document.querySelectorAll("button, input, canvas, progress")].map(element =>
            element.ariaLabel || element.labels?.[0]?.innerText || element.innerText)"""
    )
    assert all(name and name.strip() for name in names)
    style = (web.PAGE / "style.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in style.split("prefers-color-scheme: dark")[:2])
    for colors in (light, dark):
        for front, back in (
            ("text", "back"),
            ("text", "card"),
            ("soft", "back"),
            ("soft", "card"),
            ("soft", "stage"),
            ("on-brand", "brand"),
        ):
            assert contrast(colors[front], colors[back]) >= 4.5, (front, back)  # WCAG 2.2, AA


def contrast(a, b):
    def luminance(color):
        values = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    bright, dim = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("size", [(90, 120), (200, 31), (64, 64), (33, 47)])
def test_pixels_are_pillows_and_masks_are_the_predictors(visitor, size):
    """The page's resizing to 64 pixels gives Pillow's bytes; its masks are those of mask_resize.py."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    logits = np.random.default_rng(1).normal(size=(16, 16)).astype(np.float32)
    script = """async ([pixels, logits, height, width]) => {
        const { resize, toMask } = await import("./pixels.js");
        const config = { image_size: 64, embed_stride: 16, mask_threshold: 0 };
        const mask = toMask(logits, 16, { height, width }, config, height, width);
        return [[...resize(pixels, height, width, 64).pixels], [...mask]];
    }"""
    rgba = np.dstack([image, np.full(size, 255, np.uint8)])
    pixels, mask = visitor.page.evaluate(script, [rgba.ravel().tolist(), logits.ravel().tolist(), *size])
    rows, columns = resized_size(size, 64)
    assert np.array_equal(np.reshape(pixels, (rows, columns, 4))[:, :, :3], resize(image, 64))
    sides = (neighbours(side, 16, 4 * part / 16) for side, part in zip(size, (rows, columns), strict=True))
    want = np.concatenate([block > 0 for _, block in resize_blocks(logits, *sides)])
    assert (np.reshape(mask, size) != want).mean() < 1e-3


@pytest.mark.parametrize("mask", [np.zeros((5, 7)), np.ones((5, 7)), np.eye(9), np.arange(80).reshape(8, 10) % 3 == 0])
def test_formats_of_odd_masks(visitor, mask):
    mask = mask.astype(bool)
    script = """async ([mask, height, width]) => {
        const { toRle, toYolo } = await import("./formats.js");
        return [toRle(mask, height, width), toYolo([{ label: "a", mask }], height, width)];
    }"""
    counts, labels = visitor.page.evaluate(script, [mask.ravel().astype(int).tolist(), *mask.shape])
    assert counts == encode_rle(mask)["counts"]
    instances = from_yolo(labels, COFFEE, mask.shape, ["a"]).instances
    assert len(instances) == bool(mask.any())
    if mask.all():
        assert instances[0].mask.all()


def test_without_service_workers_there_is_one_thread(browser, server):
    plain = Visitor(browser, server.url, service_workers="block")
    assert not plain.page.evaluate("crossOriginIsolated")
    assert "WebAssembly, 1 thread." in plain.page.inner_text("#times")
    plain.close()


@pytest.mark.release
@pytest.mark.skipif(not ALL, reason="it takes minutes: make test-all runs it")
def test_webgpu_computes_what_is_known(browser, server):
    """On a GPU that is imitated: the page is ready only if the encoder and the decoder gave the export's scores and logits."""
    imitating = browser.browser_type.launch(executable_path=CHROMIUM, args=["--no-sandbox", *IMITATED_GPU])
    visitor = Visitor(imitating, f"{server.url}?runtime=webgpu", patience=20 * PATIENCE)
    assert "WebGPU" in visitor.page.inner_text("#times")
    visitor.close()
    imitating.close()


def test_it_works_offline(visitor, server, expected):
    """The server is gone, and the page is loaded again; no test that needs the server comes after."""
    server.stop()
    visitor.page.reload()
    visitor.says("Ready: open an image.")
    visitor.open()
    masks, _ = expected.predict_single_mask(boxes=np.array([BOX]))
    visitor.drag(*BOX)
    visitor.says_share(1, masks[0])
    assert mask_iou(visitor.masks()[0], masks[0]) >= 0.99


def test_what_the_folder_holds(site):
    """The page's files, and the runtime's and the model's; the model is an exported folder of half the size."""
    index = json.loads((site / "site.json").read_text())
    found = {path.relative_to(site).as_posix(): path.stat().st_size for path in site.rglob("*") if path.is_file()}
    names = {path.name for path in web.PAGE.iterdir()}
    names |= {f"runtime/{name}" for name in web.RUNTIME_FILES.values()}
    names |= {f"model/{name}" for name in ("config.json", "parity.json")}
    names |= {f"model/{part}.onnx" for part in ("decoder", "encoder", "image", "masks")}
    assert found.keys() == {*names, "site.json"}
    assert index["files"].keys() == names
    assert {name: size for name, size in found.items() if name not in ("site.json", "offline.js")} == {
        name: size for name, size in index["files"].items() if name != "offline.js"
    }
    assert sum(size for name, size in found.items() if name.endswith(".onnx")) < 23e6
    assert re.search(r'const VERSION = "[0-9a-f]{16}";', (site / "offline.js").read_text())
    config = json.loads((site / "model" / "config.json").read_text())
    assert (config["architecture"], config["precision"]) == ("gmf_sam_2282_512", "fp16")


def test_the_page_asks_nobody_and_allows_nothing_else():
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', (web.PAGE / "index.html").read_text())[1]
    script = (web.PAGE / "offline.js").read_text()
    sent = "".join(re.findall(r'"(.*?)"', script[script.index('"Content-Security-Policy"') :].split("};")[0])[1:3])
    assert sent == f"{policy}; frame-ancestors 'self'"
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert "'unsafe-eval'" not in policy
    for path in web.PAGE.iterdir():
        hosts = set(re.findall(r"https?://[\w.]+", path.read_text()))
        assert hosts <= {"http://www.w3.org", "http://www.apache.org"}, path  # the name of SVG, and the licence
    shell = set(re.search(r"const SHELL = \[(.*?)\]", script)[1].replace('"', "").split(", "))
    pages = {path.name for path in web.PAGE.iterdir()} - {"index.html", "offline.js", "NOTICE.txt"}
    assert shell == {"./", "site.json", "model/config.json", *pages}
    assert web.PACKAGE.replace("onnxruntime-web@", "ONNX Runtime Web ") in (web.PAGE / "NOTICE.txt").read_text()


def test_another_runtime_is_refused(sam, tmp_path):
    (tmp_path / "other.tgz").write_bytes(b"something else")
    with pytest.raises(InvalidInputError, match=r"has the integrity sha512-.*, not sha512-q0y"):
        web.export_web(sam, tmp_path / "site", [draw()], runtime=tmp_path / "other.tgz")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        web.export_web(sam, tmp_path / "site", [draw()], runtime=tmp_path / "none.tgz")
    assert [path.name for path in tmp_path.iterdir()] == ["other.tgz"]


def test_npm_that_is_missing_or_fails(sam, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeUnavailableError, match="npm is not installed: install Node"):
        web.export_web(sam, tmp_path / "site", [draw()])
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code E404' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(RuntimeUnavailableError, match=r"failed \(npm error code E404\): check npm's registry"):
        web.export_web(sam, tmp_path / "site", [draw()])


def test_command(sam, tmp_path, monkeypatch):
    """The page takes the fast weights, and no options that it has no use for."""
    built, written = [], []
    monkeypatch.setattr("groupmix_sam.sam.build_sam_groupmix", lambda *args, **kwargs: built.append(args) or sam)
    report = {"mean_iou": 1, "min_iou": 1, "low_iou": 1, "masks": 1, "images": 1}
    monkeypatch.setattr(web, "export_web", lambda *args, **kwargs: written.append((args, kwargs)) or report)
    Image.fromarray(draw()).save(tmp_path / "a.png")
    arguments = ["export", "web", str(tmp_path / "site"), "--images", str(tmp_path), "--onnxruntime-web", "a.tgz"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert f"wrote {tmp_path / 'site'}" in done.output
    assert built == [("fast",)]
    assert written[0][1]["runtime"] == Path("a.tgz")
    with pytest.raises(InvalidInputError, match="leave out precision"):
        CliRunner().invoke(app, [*arguments, "--precision", "int8"], catch_exceptions=False)
    arguments[1] = "onnx"
    with pytest.raises(InvalidInputError, match="leave it out for onnx"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_folder_that_is_there(sam, tmp_path):
    with pytest.raises(InvalidInputError, match="is there already"):
        web.export_web(sam, tmp_path, [draw()])
    with pytest.raises(InvalidInputError, match="make it first"):
        web.export_web(sam, tmp_path / "no" / "site", [draw()])
