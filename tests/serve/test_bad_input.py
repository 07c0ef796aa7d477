"""Bad input to the server: never a 500, and nothing is read outside the root."""

import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from .conftest import draw, png

CASES = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SECRET = (47, 31)  # width and height of what is outside


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    return file.getvalue()


FILES = [png(draw(20, 30)), jpeg(draw(20, 30))]


@CASES
@given(st.data())
def test_damaged_images(shared_server, data):
    file = bytearray(data.draw(st.sampled_from(FILES)))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(file) - 1), st.integers(0, 255)), max_size=8)):
        file[at] = value
    file = file[: data.draw(st.integers(0, len(file)))] + data.draw(st.binary(max_size=20))
    answer = shared_server.ask("POST", "/images", bytes(file))
    assert answer.status in (201, 422), answer.body
    assert answer.status == 201 or answer.json()["detail"]


def huge(width, height):
    """A PNG whose header says a size that its data do not have."""
    file = bytearray(png(np.zeros((1, 1, 3), dtype=np.uint8)))
    file[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(file)


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (100_000, 1), (5001, 5000), (0, 0)])
def test_huge_sizes(shared_server, size):
    assert shared_server.ask("POST", "/images", huge(*size)).status == 422


def test_narrow_images(shared_server):
    answer = shared_server.ask("POST", "/images", png(np.zeros((1, 2000, 3), dtype=np.uint8)))
    assert answer.status == 422
    assert "too narrow" in answer.json()["detail"]


numbers = st.one_of(st.integers(), st.floats(), st.integers(-200, 200), st.sampled_from([10**400, -1e308, 1e-320, "1", True]))
values = st.recursive(st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=5)), lambda one: st.lists(one, max_size=4))
prompts = st.fixed_dictionaries(
    {},
    optional={
        "points": st.one_of(values, st.lists(st.tuples(numbers, numbers), max_size=3)),
        "labels": st.one_of(values, st.lists(st.sampled_from([0, 1, 2, -1, "0"]), max_size=3)),
        "box": st.one_of(values, st.tuples(numbers, numbers, numbers, numbers)),
        "category": st.one_of(values, st.sampled_from(["\ud800", "\0", "x" * 101])),
        "unknown": values,
    },
)
bodies = st.one_of(
    values,
    st.fixed_dictionaries(
        {"prompts": st.one_of(values, st.lists(prompts, max_size=2))},
        optional={"format": st.sampled_from(["rle", "polygons", "png", "labels", "jpg", 1, None]), "tolerance": numbers},
    ),
)


@pytest.fixture(scope="module")
def key(shared_server):
    return shared_server.send(draw())


@CASES
@given(body=bodies)
def test_wrong_prompts(shared_server, key, body):
    answer = shared_server.ask("POST", f"/images/{key}/masks", body)
    assert answer.status in (200, 400, 422), answer.body
    assert answer.status == 200 or answer.json()["detail"]


@CASES
@given(body=st.dictionaries(st.sampled_from(["points_per_side", "pred_iou_thresh", "min_mask_area", "format", "x"]), values))
def test_wrong_grids(shared_server, key, body):
    body = {"points_per_side": 1, **body}
    if body["points_per_side"] not in (1, 2):  # others take long
        body["points_per_side"] = str(body["points_per_side"]) + "x"
    answer = shared_server.ask("POST", f"/images/{key}/everything", body)
    assert answer.status in (200, 422), answer.body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"path": ' + b"9" * 5000 + b"}",
        b'{"path": NaN}',
        b'{"path": "\\ud800"}',
        b"null",
    ],
)
def test_what_is_no_json(shared_server, body):
    for path in ("/images/open", "/images/x/masks", "/images/x/everything"):
        answer = shared_server.ask("POST", path, body)
        assert answer.status in (400, 404, 422), answer.body
        assert answer.json()["detail"]


def test_json_under_another_name(shared_server):
    """What a form on any site's page may send."""
    answer = shared_server.ask("POST", "/images/open", {"path": "in.png"}, Content_Type="text/plain")
    assert answer.status == 422


OUT = [
    "..",
    "up",
    "out.png",
    "circle",
    "secret.png",
    "rooted",
    "root",
    "/",
    "//",
    "\\",
    ".",
    "~",
    "C:",
    "\0",
    "\ud800",
    "NUL",
    "in.png",
]
paths = st.one_of(
    st.lists(st.one_of(st.sampled_from(OUT), st.text(max_size=3)), max_size=6).map("/".join),
    st.text(max_size=20),
    st.sampled_from(["a" * 300, "a/" * 2000, "x" * 4097, "%2e%2e/secret.png", "..%2fsecret.png", "file:///etc/passwd", ""]),
)


@CASES
@given(path=paths, absolute=st.booleans())
def test_paths_out_of_the_root(shared_server, files, path, absolute):
    if absolute:
        path = f"{files.parent}/{path}"
    answer = shared_server.ask("POST", "/images/open", {"path": path})
    assert answer.status in (201, 404, 422), answer.body
    found = answer.json()
    assert (found.get("width"), found.get("height")) != SECRET, path
    assert answer.status != 201 or found["width"] == 120


@pytest.mark.parametrize("path", ["../secret.png", "out.png", "up/secret.png", "../rooted/secret.png", "up/root/../secret.png"])
def test_secrets_are_as_if_they_were_not_there(shared_server, files, path):
    for one in (path, str(files / path)):
        answer = shared_server.ask("POST", "/images/open", {"path": one})
        assert answer.status == 404
        assert answer.json()["detail"] == f"there is no file {one!a} below the server's root: give its path from there."


@CASES
@given(
    st.sampled_from(["GET", "POST", "DELETE", "PUT", "BREW"]),
    st.lists(st.sampled_from([*OUT, "images", "masks", "docs", "%00", "%ff", "a b"]), max_size=4),
)
def test_other_addresses(shared_server, method, parts):
    path = "/" + "/".join(parts)
    path = "".join(letter if " " < letter < "\x7f" else "%20" for letter in path)
    answer = shared_server.ask(method, path, b"{}" if method == "POST" else None)
    assert answer.status in (200, 400, 404, 405, 422), answer.body
    if "json" in answer.headers.get("content-type", ""):
        json.loads(answer.body)
