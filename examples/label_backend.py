"""A backend for Label Studio: set a point or draw a box there, and get the mask of what it shows as a brush region.

    label-studio start --data-dir studio --internal-host 127.0.0.1
    python examples/label_backend.py studio

Label Studio is installed for itself, and docs/interoperate.md has its settings. Images are read that were given to it
in the browser, and with --files those of its local files, which are under its LOCAL_FILES_DOCUMENT_ROOT. No other file is read,
and nothing is fetched.

Label Studio asks GET /health, POST /setup and POST /predict, and sends news to /webhook, which are not needed. Errors are in
the status line, which is what it passes on; its page shows nothing of them, so they are to be read where this runs.
"""

import argparse
import json
from contextlib import suppress
from copy import copy
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from groupmix_sam.demo.session import load_named
from groupmix_sam.errors import GroupMixSamError, InvalidInputError
from groupmix_sam.images import read_image
from groupmix_sam.inference import Predictor
from groupmix_sam.prompts import Prompt

LOCAL = ("127.0.0.1", "localhost")
# Label Studio sends a task with all of its annotations, whose masks are lists of numbers.
MAX_BODY = 64 * 1024 * 1024
REMEMBERED = 8  # images whose embeddings are kept, of a few MB each


class Backend:
    """Answers Label Studio's requests.

    Args:
        predictor: A model.
        version: What Label Studio calls it.
        uploads: The folder of Label Studio's uploads.
        files: The folder of its local files, if they are read too.
    """

    def __init__(self, predictor: Predictor, version: str, uploads: Path, files: Path | None = None) -> None:
        self.predictor, self.version, self.uploads, self.files = predictor, version, uploads, files
        self._lock = Lock()  # a runtime is not asked by two threads at once
        self._seen = lru_cache(REMEMBERED)(self._see)

    def predict(self, request: dict[str, Any]) -> list[Any]:
        """Return what /predict gives: the mask of a prompt, or nothing for each task while nobody has set one.

        Raises:
            InvalidInputError: the config, the image or the prompt is not of the kind that this can use.
        """
        regions = ((request.get("params") or {}).get("context") or {}).get("result")
        if not regions:
            return [[] for _ in request["tasks"]]
        brush, image, variable = read_config(request["label_config"])
        path = self.locate(request["tasks"][0]["data"][variable])
        with self._lock:
            predictor, size = self._seen(path, path.stat().st_mtime_ns if path.is_file() else 0)
            prompt = read_prompt(regions, size)
            if prompt.category not in brush["labels"]:
                raise InvalidInputError(f"the brush has no label {prompt.category!r}: give brush and prompts the same labels.")
            masks, scores, _ = predictor.predict(**prompt.arrays(), multimask_output=prompt.ambiguous)
        best = int(scores.argmax())
        region = {
            "id": uuid4().hex[:10],
            "type": "brushlabels",
            "from_name": brush["name"],
            "to_name": image,
            "original_width": size[1],
            "original_height": size[0],
            "image_rotation": 0,
            "value": {"format": "rle", "rle": brush_rle(masks[best]), "brushlabels": [prompt.category]},
            "score": float(scores[best]),
        }
        return [{"result": [region], "score": region["score"], "model_version": self.version}]

    def locate(self, url: str) -> Path:
        """Return the file that Label Studio has at a URL, in one of the folders, wherever links lead."""
        parts = urlsplit(url)
        if parts.path.startswith("/data/upload/"):
            folder, name = self.uploads, unquote(parts.path.removeprefix("/data/upload/"))
        elif parts.path.rstrip("/") == "/data/local-files" and self.files:
            folder, name = self.files, parse_qs(parts.query)["d"][0]
        else:
            raise InvalidInputError(f"the image is {url:.200}: upload it to Label Studio, or give its files by --files.")
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise InvalidInputError(f"the image {name:.200} is not in the folder of Label Studio's files: put it there.")
        return path

    def _see(self, path: Path, _modified: int) -> tuple[Predictor, tuple[int, int]]:
        """Return a predictor that has seen an image, and the image's height and width."""
        image = read_image(path)
        predictor = copy(self.predictor)  # shares the weights, and has embeddings of its own
        predictor.set_image(image)
        return predictor, (image.shape[0], image.shape[1])


def read_config(text: str) -> tuple[dict[str, Any], str, str]:
    """Return a labelling config's brush, its name and labels; the name of its image; and that of the task's value there."""
    if "<!DOCTYPE" in text:  # which may have entities, by which a short text becomes a huge one
        raise InvalidInputError("the labelling config has a <!DOCTYPE: leave it out.")
    try:
        tree = ElementTree.fromstring(text)  # noqa: S314  without entities
    except ElementTree.ParseError as e:
        raise InvalidInputError(f"the labelling config is no XML ({e}): see docs/interoperate.md.") from e
    brush = tree.find(".//BrushLabels")
    images = [] if brush is None else [image for image in tree.iter("Image") if image.get("name") == brush.get("toName")]
    if brush is None or not images:
        raise InvalidInputError("the labelling config has no BrushLabels for an Image: see docs/interoperate.md.")
    labels = [label.get("value") for label in brush.iter("Label")]
    name, value = images[0].get("name", ""), images[0].get("value", "")
    return {"name": brush.get("name"), "labels": labels}, name, value.removeprefix("$")


def read_prompt(regions: list[dict[str, Any]], size: tuple[int, int]) -> Prompt:
    """Return Label Studio's points and box, which are percents of an image of that height and width, as a prompt."""
    height, width = size
    points, labels, box, category = [], [], None, None
    for region in regions:
        kind, value = region["type"], region["value"]
        if kind not in ("keypointlabels", "rectanglelabels") or region.get("image_rotation"):
            raise InvalidInputError(f"the prompt is a {kind}: give points and a box, on an image that is not turned.")
        x, y = value["x"] / 100 * width, value["y"] / 100 * height
        category = value[kind][0]
        if kind == "keypointlabels":
            points.append([x // 1 - (x == width), y // 1 - (y == height)])  # the pixel that was clicked on
            labels.append(int(region.get("is_positive", True)))
        else:
            # A box of three points is turned, clockwise about its first corner: take the upright one around it.
            across, down = value["width"] / 100 * width, value["height"] / 100 * height * 1j
            turn = np.exp(np.radians(value.get("rotation", 0)) * 1j)
            corners = x + y * 1j + turn * np.array([0, across, down, across + down])
            box = [corners.real.min(), corners.imag.min(), corners.real.max(), corners.imag.max()]
            box = np.clip(box, 0, [width, height, width, height]).tolist()
    prompt = Prompt(points, labels, box, category)
    prompt.check(size)
    return prompt


def brush_rle(mask: NDArray[np.bool_]) -> list[int]:
    """Return a mask, H x W, as a brush's bytes: those of an RGBA image, 255 inside, as @thi.ng/rle-pack packs them.

    They are a stream of bits: how many bytes there are, 32 bits; then, each less one, how wide one is, 5 bits, and the widths
    of four kinds of length, 4 bits each; then runs: a 1, the kind of length, 2 bits, the length less one, and the byte. Here
    every length is of the last kind.
    """
    flat = mask.ravel()
    # Where a run begins: where the mask changes, and before it would be longer than 2^16 bytes, four a pixel.
    starts = np.union1d(np.flatnonzero(flat[1:] != flat[:-1]) + 1, np.arange(0, flat.size, 2**14))
    lengths = 4 * np.diff(starts, append=flat.size)
    runs = 0b111 << 24 | (lengths - 1) << 8 | 255 * flat[starts]
    head = np.array([4 * flat.size << 21 | (8 - 1) << 16 | 0x237F])  # of lengths with 3, 4, 8 and 16 bits
    return np.packbits(np.concatenate([_bits(head, 53), _bits(runs, 27)])).tolist()


def _bits(numbers: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """Return the last `width` bits of each number, one after the other."""
    return np.unpackbits(numbers.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1)[:, -width:].ravel()


class Server(ThreadingHTTPServer):
    """Serves a backend."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], backend: Backend) -> None:
        super().__init__(address, Handler)
        self.backend = backend


class Handler(BaseHTTPRequestHandler):
    """Label Studio's side of a backend."""

    server: Server
    timeout = 60  # seconds that somebody may stay silent

    def do_GET(self) -> None:
        if self.path in ("/", "/health"):
            self._answer({"status": "UP", "model_class": "SAM"})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        # A page of another site cannot send this type without asking for leave, which is never given.
        if self.headers.get_content_type() != "application/json":
            return self.send_error(415, "send application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            return self.send_error(413, f"send a Content-Length of {MAX_BODY} at most")
        body, version = self.rfile.read(int(length)), self.server.backend.version
        if self.path == "/predict":
            try:
                results = self.server.backend.predict(json.loads(body))
            except GroupMixSamError as e:  # as one line of ASCII, which a status line is
                return self.send_error(400, " ".join(str(e).encode("ascii", "backslashreplace").decode().split()))
            except (AttributeError, IndexError, KeyError, OSError, RecursionError, TypeError, ValueError) as e:
                return self.send_error(400, f"this is no request of Label Studio's: {type(e).__name__}")
            return self._answer({"results": results, "model_version": version})
        if self.path in ("/setup", "/webhook"):
            return self._answer({"model_version": version})
        return self.send_error(404)

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studio", type=Path, help="Label Studio's data folder")
    parser.add_argument("--files", type=Path, help="its LOCAL_FILES_DOCUMENT_ROOT, to read images there too")
    parser.add_argument("--checkpoint", default="default", help="weights, or a folder that `groupmix-sam export` wrote")
    parser.add_argument("--host", default=LOCAL[0], help="address to listen at; another one opens it to your network")
    parser.add_argument("--port", type=int, default=9090, help="port to listen at; 0 is any that is free")
    options = parser.parse_args()
    for folder in (options.studio, options.files):
        if folder and not folder.is_dir():
            parser.error(f"there is no folder {folder}")

    version, predictor = load_named(options.checkpoint)
    backend = Backend(predictor, version, options.studio / "media" / "upload", options.files)
    with Server((options.host, options.port), backend) as server:
        if options.host not in LOCAL:
            print(f"warning: whoever reaches {options.host} can ask for masks, without a password or encryption")
        print(f"add http://{options.host}:{server.server_port} as a model in Label Studio; Ctrl-C ends it", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
