"""The server over real connections, against the predictor that it runs."""

import http.client
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from groupmix_sam.errors import InvalidInputError, RuntimeUnavailableError
from groupmix_sam.inference import Predictor, everything, segment
from groupmix_sam.masks import decode_rle, fill_polygons
from groupmix_sam.prompts import Prompt
from groupmix_sam.serve import Limits
from groupmix_sam.serve.app import check_token, listen
from groupmix_sam.serve.guard import RateLimiter

from .conftest import Drawn, png, serving

TOKEN = "0123456789abcdef"
PROMPTS = [
    Prompt(box=[30, 22, 60, 45]),
    Prompt([[40, 30]], [1], category="part"),
    Prompt([[40, 30], [100, 80]], [1, 0]),
    Prompt([[40, 30]], [1], [30, 22, 60, 45]),
]


@pytest.fixture(scope="module")
def expected(predictor, image):
    return segment(Predictor(predictor.model), image, PROMPTS)


def test_masks_are_the_predictors(shared_server, image, expected):
    key = shared_server.send(image)
    looked = shared_server.ask("GET", f"/images/{key}")
    assert looked.json() == {"id": key, "width": 120, "height": 90}
    body = {"prompts": [prompt.record() for prompt in PROMPTS]}
    answer = shared_server.ask("POST", f"/images/{key}/masks", body).json()
    assert (answer["width"], answer["height"]) == (120, 90)
    for got, one in zip(answer["instances"], expected, strict=True):
        assert np.array_equal(decode_rle(got["rle"]), one.mask)
        assert got["score"] == pytest.approx(one.score, abs=1e-6)
        assert (got["category"], tuple(got["box"]), got["area"]) == (one.category, one.box, one.area)
    traced = shared_server.ask("POST", f"/images/{key}/masks", {**body, "format": "polygons", "tolerance": 0}).json()
    for got, one in zip(traced["instances"], expected, strict=True):
        assert np.array_equal(fill_polygons(got["polygons"], one.size), one.mask)


def test_masks_as_png(shared_server, image, expected):
    key = shared_server.send(image)
    body = {"prompts": [prompt.record() for prompt in PROMPTS]}
    answer = shared_server.ask("POST", f"/images/{key}/masks", {**body, "format": "png"})
    assert answer.headers["content-type"] == "image/png"
    assert np.array_equal(answer.image(), 255 * np.any([one.mask for one in expected], axis=0))
    scores = [float(score) for score in answer.headers["x-scores"].split(",")]
    assert scores == pytest.approx([one.score for one in expected], abs=1e-4)
    labels = shared_server.ask("POST", f"/images/{key}/masks", {**body, "format": "labels"}).image()
    smallest = min(expected, key=lambda one: one.area)
    assert (labels[smallest.mask] == expected.index(smallest) + 1).all()
    assert np.array_equal(labels > 0, np.any([one.mask for one in expected], axis=0))


def test_everything_is_found_without_the_pixels(shared_server, predictor, image):
    settings = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "min_mask_area": 5}
    found = everything(predictor, image, **settings)
    key = shared_server.send(image)
    answer = shared_server.ask("POST", f"/images/{key}/everything", settings).json()
    assert len(answer["instances"]) == len(found) > 0
    for got, one in zip(answer["instances"], found, strict=True):
        assert np.array_equal(decode_rle(got["rle"]), one.mask)


def test_the_image_used_longest_ago_goes_first(predictor, image):
    with serving(predictor, Limits(images=2)) as (client, engine):
        first, second = client.send(image), client.send(image)
        assert client.ask("GET", f"/images/{first}").status == 200
        third = client.send(image)
        states = [client.ask("GET", f"/images/{key}").status for key in (first, second, third)]
        assert states == [200, 404, 200]
        assert (len(engine), engine.evictions) == (2, 1)
        assert client.ask("DELETE", f"/images/{first}").status == 204
        gone = client.ask("POST", f"/images/{first}/masks", {"prompts": [{"box": [1, 1, 9, 9]}]})
        assert gone.status == 404
        assert "send it again" in gone.json()["detail"]
        assert client.ask("DELETE", f"/images/{first}").status == 404


def test_images_below_the_root(shared_server):
    for path in ("line 3/ü/0001.png", "in.png", "line 3/../in.png"):
        opened = shared_server.ask("POST", "/images/open", {"path": path})
        assert opened.status == 201, opened.body
        assert opened.json()["width"] == 120
    damaged = shared_server.ask("POST", "/images/open", {"path": "text.png"})
    assert damaged.status == 422
    assert "cannot be read as an image" in damaged.json()["detail"]


def test_an_image_in_a_form(shared_server):
    answer = shared_server.ask("POST", "/images", b"--x", Content_Type="multipart/form-data; boundary=x")
    assert answer.status == 415
    assert "--data-binary" in answer.json()["detail"]


def test_no_root_no_files(predictor):
    with serving(predictor) as (client, _):
        answer = client.ask("POST", "/images/open", {"path": "in.png"})
    assert answer.status == 422
    assert "--root" in answer.json()["detail"]


def test_a_token_is_asked_for(predictor, image):
    with serving(predictor, token=TOKEN) as (client, _):
        refused = client.ask("POST", "/images", png(image))
        assert refused.status == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        for given in ("", "Bearer", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}0", f"Basic {TOKEN}", TOKEN):
            assert client.ask("GET", "/metrics", Authorization=given).status == 401
        # The address of a page may not be a way around it.
        for path in ("/metrics?x=/docs", "/docs/../metrics", "/static-offline-docs/../metrics", "//docs/metrics"):
            assert client.ask("GET", path, Host="a/docs?").status in (401, 404), path
        assert client.ask("POST", "/images", png(image), Authorization=f"Bearer {TOKEN}").status == 201
        assert client.ask("GET", "/metrics", Authorization=f"bearer {TOKEN}", Host="line-3.factory").status == 200
        assert client.ask("GET", "/health").json() == {"status": "ok"}


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "::", "line-3"])
def test_other_addresses_than_loopback_need_a_token(host):
    with pytest.raises(InvalidInputError, match="GROUPMIX_SAM_TOKEN"):
        check_token(None, host)
    check_token(TOKEN, host)


def test_what_is_no_token():
    for host in ("127.0.0.1", "127.3.0.1", "::1", "localhost"):
        check_token(None, host)
    for token in ("", "short", "sixteen and more", "sechzehn-zeichen-ü", "0123456789abcde\n"):
        with pytest.raises(InvalidInputError, match="16 or more"):
            check_token(token, "localhost")


def test_an_address_that_cannot_be_had():
    with listen("127.0.0.1", 0) as taken, pytest.raises(InvalidInputError, match="another --host or --port"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(InvalidInputError, match="another --host or --port"):
        listen("192.0.2.1", 0)


def test_other_sites_pages_may_not_use_it(shared_server):
    own = f"127.0.0.1:{shared_server.port}"
    assert shared_server.ask("GET", "/health", Host="rebound.example").status == 403
    assert shared_server.ask("GET", "/health", Host="[").status == 403
    assert shared_server.ask("GET", "/health", Origin="https://rebound.example").status == 403
    assert shared_server.ask("GET", "/health", Origin="null").status == 403
    assert shared_server.ask("GET", "/health", Origin=f"http://{own}").status == 200
    assert shared_server.ask("GET", "/health", Host="localhost").status == 200


def test_bodies_that_are_too_long(predictor, image):
    with serving(predictor, Limits(megabytes=0.01)) as (client, engine):
        assert client.ask("POST", "/images", b"", Content_Length=str(10**12)).status == 413
        assert client.ask("POST", "/images", b"", Content_Length="10001").status == 413
        assert client.ask("POST", "/images/open", b"", Content_Length="1000001").status == 413
        assert client.ask("POST", "/images", png(image)).status == 201
        with socket.create_connection(("127.0.0.1", client.port)) as connection:  # one that says no length
            head = b"POST /images HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head + b"2710\r\n" + b"x" * 10_000 + b"\r\n" + b"1\r\nx\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
        assert engine.waiting == 0


def test_a_file_that_is_too_long(predictor, files):
    with serving(predictor, Limits(megabytes=0.001), files) as (client, _):
        answer = client.ask("POST", "/images/open", {"path": "large.png"})
    assert answer.status == 422
    assert "more than 0.001 MB" in answer.json()["detail"]


def test_a_body_that_does_not_come(predictor):
    with serving(predictor, Limits(timeout=0.2)) as (client, engine):
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(b"POST /images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nx")
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
        with socket.create_connection(("127.0.0.1", client.port)) as connection:  # one who goes away
            connection.sendall(b"POST /images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nx")
        assert client.ask("GET", "/health").status == 200
        while engine.waiting:
            time.sleep(0.01)


def test_more_requests_than_the_rate(predictor):
    with serving(predictor, Limits(rate=2)) as (client, _):
        answers = [client.ask("GET", "/openapi.json") for _ in range(5)]
        assert client.ask("GET", "/health").status == 200
    assert [answer.status for answer in answers[:2]] == [200, 200]
    assert answers[-1].status == 429
    assert answers[-1].headers["retry-after"] == "1"


def test_rates_are_by_address():
    rates = RateLimiter(2)
    assert [rates.wait("a", 0.0) for _ in range(2)] == [0, 0]
    assert rates.wait("a", 0.0) == 0.5
    assert rates.wait("b", 0.0) == 0
    assert rates.wait("a", 0.25) == 0.25
    assert rates.wait("a", 0.5) == 0


class Slow:
    """An encoder that waits until it is told to go on, and notes how many run at once."""

    def __init__(self, encoder):
        self.encoder, self.device, self.go_on = encoder, encoder.device, threading.Event()
        self.calls = self.running = self.most = 0

    def __call__(self, *inputs):
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        self.go_on.wait(30)
        self.running -= 1
        return self.encoder(*inputs)


@pytest.fixture
def slow(predictor):
    encoder = Slow(predictor.model.encoder)
    yield Predictor(replace(predictor.model, encoder=encoder)), encoder
    encoder.go_on.set()


def test_a_bounded_number_waits_and_one_is_computed(slow, image):
    predictor, encoder = slow
    with serving(predictor, Limits(queue=2)) as (client, engine), ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(client.ask, "POST", "/images", png(image)) for _ in range(3)]
        while engine.waiting < 3:
            time.sleep(0.01)
        refused = client.ask("POST", "/images", png(image))
        assert refused.status == 503
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "groupmix_sam_waiting 3.0" in client.ask("GET", "/metrics").body.decode()
        encoder.go_on.set()
        assert [one.result().status for one in asked] == [201] * 3
        assert client.ask("POST", "/images", png(image)).status == 201
    assert (encoder.calls, encoder.most) == (4, 1)


def test_what_takes_too_long(slow, image, monkeypatch):
    predictor, encoder = slow
    with serving(predictor, Limits(timeout=0.2)) as (client, engine):
        with ThreadPoolExecutor(2) as pool:
            first, second = (pool.submit(client.ask, "POST", "/images", png(image)) for _ in range(2))
            assert first.result().status == second.result().status == 503
        assert int(first.result().headers["retry-after"]) >= 1
        while engine.working_for < 1:  # the first one goes on
            time.sleep(0.01)
        stuck = client.ask("GET", "/health")
        assert (stuck.status, stuck.json()) == (503, {"status": "stuck"})
        encoder.go_on.set()
        while engine.working_for:
            time.sleep(0.01)
        assert client.ask("GET", "/health").status == 200
    assert encoder.calls == 1, "whoever waited until it was too late is not computed"


def test_what_has_been_asked_is_answered_before_it_stops(slow, image):
    predictor, encoder = slow
    with ThreadPoolExecutor(1) as pool:
        with serving(predictor) as (client, engine):
            asked = pool.submit(client.ask, "POST", "/images", png(image))
            while engine.working_for == 0:
                time.sleep(0.01)
            threading.Timer(0.3, encoder.go_on.set).start()
        assert asked.result().status == 201


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (RuntimeUnavailableError("the GPU is gone: start it again."), "the GPU is gone: start it again."),
        (MemoryError("17 GB"), "the server failed: its log says why."),
    ],
    ids=["ours", "any"],
)
def test_what_is_no_fault_of_the_request(predictor, image, error, detail):
    """Whoever watches the answers must see it, and a program reads JSON."""

    def fail(*_):
        raise error

    with serving(Predictor(replace(predictor.model, encoder=Drawn(fail)))) as (client, _):
        answer = client.ask("POST", "/images", png(image))
        assert (answer.status, answer.json()) == (500, {"detail": detail})
        assert client.ask("GET", "/health").status == 200


def test_metrics(predictor, image):
    with serving(predictor) as (client, _):
        key = client.send(image)
        client.ask("POST", f"/images/{key}/masks", {"prompts": [{"box": [1, 1, 99, 80]}]})
        client.ask("GET", "/no/such/page")
        client.ask("BREW", "/health")
        answer = client.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = answer.body.decode().splitlines()
    assert 'groupmix_sam_requests_total{method="POST",route="/images",status="201"} 1.0' in lines
    assert 'groupmix_sam_requests_total{method="POST",route="/images/{image_id}/masks",status="200"} 1.0' in lines
    assert 'groupmix_sam_requests_total{method="GET",route="other",status="404"} 1.0' in lines
    assert any(line.startswith('groupmix_sam_requests_total{method="other",') for line in lines)
    assert 'groupmix_sam_work_seconds_count{part="encode"} 1.0' in lines
    assert "groupmix_sam_images 1.0" in lines
    assert "groupmix_sam_evictions_total 0.0" in lines
    assert any(line.startswith("process_resident_memory_bytes ") for line in lines)


def test_the_page_of_the_api_needs_no_network(shared_server):
    page = shared_server.ask("GET", "/docs").body.decode()
    loaded = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert len(loaded) >= 3
    for address in loaded:
        assert address.startswith("/static-offline-docs/")
        assert shared_server.ask("GET", address).status == 200
    described = shared_server.ask("GET", "/openapi.json").json()
    assert "HTTPValidationError" not in described["components"]["schemas"], "errors are texts here"
    paths = described["paths"]
    assert {(path, method) for path, methods in paths.items() for method in methods} == {
        ("/images", "post"),
        ("/images/open", "post"),
        ("/images/{image_id}", "get"),
        ("/images/{image_id}", "delete"),
        ("/images/{image_id}/masks", "post"),
        ("/images/{image_id}/everything", "post"),
        ("/health", "get"),
        ("/metrics", "get"),
    }
    assert all(one.get("description") for methods in paths.values() for one in methods.values())


def test_connections_are_kept(shared_server):
    connection = http.client.HTTPConnection("127.0.0.1", shared_server.port, timeout=60)
    for _ in range(2):
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b'{"status":"ok"}'
    connection.close()


@pytest.mark.parametrize("values", [{"images": 0}, {"queue": -1}, {"megabytes": 0}, {"rate": 0}, {"timeout": float("nan")}])
def test_limits_that_are_none(values):
    with pytest.raises(InvalidInputError, match=f"{next(iter(values))} is "):
        Limits(**values)
