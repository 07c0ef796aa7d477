import os
import signal
import socket
import sys
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("gradio", reason="the page needs groupmix-sam[demo]")

from groupmix_sam.cli import app
from groupmix_sam.demo import Answer, Click, Session, image_tab, page
from groupmix_sam.demo.adapter import Adapter
from groupmix_sam.demo.session import REFERENCE, Embedding
from groupmix_sam.errors import InvalidInputError, MissingExtraError
from groupmix_sam.weights import save_weights


def session(**changes):
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    masks = np.zeros((3, 40, 60), dtype=bool)
    masks[1, :10] = True
    other = np.zeros_like(masks)
    other[1, :20] = True
    theirs = Answer(other, np.array([0.1, 0.9, 0.2]), 0.03)
    answers = {"a<b": Answer(masks, np.array([0.5, 0.987, 0.1]), 0.0204), REFERENCE: theirs}
    embeddings = {"a<b": Embedding(None, 0.5), REFERENCE: Embedding(None, 1.25)}
    values = {"clicks": (Click(1, 1),), "embeddings": embeddings, "answers": answers, "model": "a<b", "chosen": 1}
    return Session(image, image, **{**values, **changes})


def test_what_there_is_and_what_to_do_is_said():
    assert "Start with an image" in image_tab.hint_text(Session())
    assert image_tab.hint_text(session(clicks=(), answers={})) == "60 x 40 pixels. Click on what you want."
    assert "Corner at 3, 4:" in image_tab.hint_text(session(clicks=(Click(3, 4, "corner"),), answers={}))
    assert image_tab.hint_text(session()) == "The mask covers 25.0 % of 60 x 40 pixels."
    assert image_tab.hint_text(session(), REFERENCE).endswith("IoU with the mask of MobileSAM: **0.500**")


def test_times_are_in_milliseconds():
    text = image_tab.times_list(session())
    assert "<dt>a&lt;b</dt><dd>encoder 500 ms once an image, decoder 20 ms each click</dd>" in text
    assert "<dt>MobileSAM</dt><dd>encoder 1250 ms once an image, decoder 30 ms each click</dd>" in text
    assert "decoder" not in image_tab.times_list(session(answers={}))


def test_scores_and_buttons_come_with_the_masks():
    *_, masks, _, save_mask, save_overlay = image_tab.show(session())
    assert masks.choices == [("1: 0.50", 0), ("2: 0.99", 1), ("3: 0.10", 2)]
    assert masks.value == 1
    assert save_mask.interactive
    assert save_overlay.interactive
    *_, masks, _, save_mask, _ = image_tab.show(session(answers={}))
    assert masks.choices == []
    assert not save_mask.interactive


def test_the_mask_is_saved_as_black_and_white():
    saved = np.asarray(image_tab.mask_image(session()))
    assert (saved[:10] == 255).all()
    assert not saved[10:].any()
    assert image_tab.mask_image(Session()) is None


def test_the_next_free_port_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert port < page.free_port("127.0.0.1", port) <= port + 100
    with pytest.raises(InvalidInputError, match=r"cannot listen at 192\.0\.2\.1:7860"):
        page.free_port("192.0.2.1", 7860)  # an address of documentation, which nobody has
    with pytest.raises(InvalidInputError, match=r"cannot listen at no\.such\.host\.invalid:7860"):
        page.free_port("no.such.host.invalid", 7860)


def test_there_may_be_no_free_port(monkeypatch):
    monkeypatch.setattr(page, "PORTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(InvalidInputError, match=f"no port from {port} to {port} is free"):
            page.free_port("127.0.0.1", port)


def test_another_host_is_warned_of(sam, tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr(page, "serve", lambda *args: served.append(args))
    monkeypatch.setattr(page, "build", lambda demo, start, adapter: SimpleNamespace(block_thread=lambda: None))
    weights = str(save_weights(sam, tmp_path / "tiny.safetensors"))
    args = ["demo", "--checkpoint", weights, "--encoder", "gmf_sam_test", "--image-size", "256"]
    done = CliRunner().invoke(app, [*args, "--host", "0.0.0.0"], catch_exceptions=False)
    assert "warning: anyone who reaches 0.0.0.0 can use this page" in done.stderr
    assert served[0][1] == "0.0.0.0"
    done = CliRunner().invoke(app, args, catch_exceptions=False)
    assert done.stderr == ""
    assert served[1][1] == "127.0.0.1"
    assert f"open http://127.0.0.1:{served[1][2]}" in done.stdout


def test_a_page_that_is_stopped_ends_what_it_began(sam, tmp_path, monkeypatch):
    """SIGTERM, as of systemd, is Ctrl-C, which gradio's `block_thread` takes for the end."""
    stopped = []

    def block_thread():
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(page, "serve", lambda *args: None)
    monkeypatch.setattr(page, "build", lambda demo, start, adapter: SimpleNamespace(block_thread=block_thread))
    monkeypatch.setattr(Adapter, "stop", lambda self: stopped.append(self.running))
    weights = str(save_weights(sam, tmp_path / "tiny.safetensors"))
    args = ["demo", "--checkpoint", weights, "--encoder", "gmf_sam_test", "--image-size", "256"]
    before = signal.getsignal(signal.SIGTERM)
    done = CliRunner().invoke(app, [*args, "--labels", str(tmp_path / "labels")], catch_exceptions=False)
    assert (done.exit_code, stopped) == (0, [False])
    assert signal.getsignal(signal.SIGTERM) == before


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "groupmix_sam.demo.page")
    with pytest.raises(MissingExtraError, match=r"groupmix-sam\[demo\]"):
        import groupmix_sam.demo.page  # noqa: F401
