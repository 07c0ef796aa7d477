"""A server in a thread of this process, with a model that is drawn rather than learnt, and a client for it."""

import http.client
import io
import json
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from groupmix_sam.inference import Predictor
from groupmix_sam.inference.model import InferenceModel

from ..inference.conftest import draw

pytest.importorskip("fastapi_offline", reason="the server needs groupmix-sam[serve]")

from groupmix_sam.serve import Engine, Limits
from groupmix_sam.serve.app import build, listen, server


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    def json(self):
        return json.loads(self.body)

    def image(self):
        return np.asarray(Image.open(io.BytesIO(self.body)))


class Client:
    """Requests to one port, each of its own connection."""

    def __init__(self, port):
        self.port = port

    def ask(self, method, path, body=None, **headers):
        """Send bytes as they are, and all else as JSON."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, headers)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def send(self, image):
        """Send an image, and return its id."""
        answer = self.ask("POST", "/images", png(image))
        assert answer.status == 201, answer.body
        return answer.json()["id"]


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@contextmanager
def serving(predictor, limits=None, root=None, **options):
    """Serve in a thread; yield a client and the engine."""
    engine = Engine(predictor, limits, root)
    with listen("127.0.0.1", 0) as listening:
        running = server(build(engine, **options), engine.limits.timeout)
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        try:
            while not running.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Client(listening.getsockname()[1]), engine
        finally:
            running.should_exit = True
            thread.join(60)
    assert not thread.is_alive()


SIDE = 64


class Drawn:
    """A function of arrays as a backend."""

    device = torch.device("cpu")

    def __init__(self, function):
        self.function = function

    def __call__(self, *inputs):
        return [torch.from_numpy(out) for out in self.function(*(value.numpy() for value in inputs))]


def encode(pixels):
    """Features that say how red the image is, in 16 x 16 cells."""
    red = pixels[:, 0].reshape(-1, 16, SIDE // 16, 16, SIDE // 16).mean((2, 4))
    return [np.repeat(red[:, None], 256, axis=1).astype(np.float32)]


def decode(features, *rest):
    """Four discs around the middle of a prompt's points, larger where the image is red, the third one with the best score."""
    *_, points, labels = rest
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    middles = [prompt[kinds > 0].mean(0) for prompt, kinds in zip(points, labels, strict=True)]
    distances = np.stack([np.hypot(x - middle[0], y - middle[1]) for middle in middles])[:, None]
    radii = 8 * np.arange(1, 5)[:, None, None] + features[:, 0].repeat(4, axis=1).repeat(4, axis=2)
    scores = np.tile(np.array([0.5, 0.6, 0.9, 0.7], dtype=np.float32), (len(points), 1))
    return [(radii - distances).astype(np.float32), scores]


@pytest.fixture(scope="session")
def predictor():
    model = InferenceModel(
        encoder=Drawn(encode),
        masks=None,
        image=Drawn(lambda features: [features] * 4),
        decoder=Drawn(decode),
        image_size=SIDE,
        input_size=(SIDE, SIDE),
        embed_stride=4,
        mean=np.full(3, 128, dtype=np.float32),
        std=np.full(3, 64, dtype=np.float32),
        mask_threshold=0.0,
        dynamic_batch=True,
        model_hash="drawn",
    )
    return Predictor(model)


@pytest.fixture(scope="session")
def image():
    return draw()


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A root with images, and others that are not below it."""
    place = tmp_path_factory.mktemp("files")
    root = place / "root"
    (root / "line 3" / "ü").mkdir(parents=True)
    Image.fromarray(draw()).save(root / "line 3" / "ü" / "0001.png")
    Image.fromarray(draw(31, 47)).save(place / "secret.png")
    (place / "rooted").mkdir()
    Image.fromarray(draw(31, 47)).save(place / "rooted" / "secret.png")
    (root / "out.png").symlink_to(place / "secret.png")
    (root / "up").symlink_to(place)
    (root / "circle").symlink_to(root / "circle")
    (root / "in.png").symlink_to(root / "line 3" / "ü" / "0001.png")
    (root / "text.png").write_text("no image")
    (root / "large.png").write_bytes(bytes(2000))
    return root


@pytest.fixture(scope="session")
def shared_server(predictor, files):
    """A server without a token, for tests that leave it as it is."""
    with serving(predictor, Limits(images=1000, rate=100_000), files) as (client, _):
        yield client
