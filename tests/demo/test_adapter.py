"""Adapting from the page, with a process that does nothing. tests/demo/test_browser.py has a real one."""

import json
import time
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from groupmix_sam.demo import Demo, adapter
from groupmix_sam.demo.adapter import Adapted, Adapter
from groupmix_sam.demo.labels import Labels
from groupmix_sam.errors import InvalidInputError


class Process:
    """In a process's place: it ends when a test says so."""

    def __init__(self, command, **options):
        self.command, self.output, self.code, self.over = command, options["stdout"].name, 0, Event()

    def wait(self):
        assert self.over.wait(60)
        return self.code

    def terminate(self):
        self.end(143)

    def end(self, code, text=""):
        Path(self.output).write_text(text)
        self.code = code
        self.over.set()


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Two labelled images, a model of weights and an exported one; and the processes that were started."""
    started = []

    def start(command, **options):
        started.append(Process(command, **options))
        return started[-1]

    monkeypatch.setattr(adapter.subprocess, "Popen", start)
    labels = Labels(tmp_path / "mine")
    for value in range(2):
        labels.save(np.full((40, 60, 3), value, dtype=np.uint8), np.ones((40, 60), dtype=bool))
    demo = Demo({"weights": lambda: None, "exported": lambda: None})
    sources = {"weights": "default"}
    return Adapter(demo, labels, sources, lambda path: (path, lambda: None), 10, ["--threads", "2"]), started


def finish(page):
    """Wait until the process's end was noticed."""
    until = time.monotonic() + 60
    while page.running:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_model_is_adapted_and_joins_the_page(page):
    page, started = page
    assert page.text() == ""
    page.start("weights")
    folder = page.labels.folder
    run = folder / "runs" / "1"
    assert started[0].command[1:] == (
        f"-m groupmix_sam adapt {folder / 'images'} --labels {folder / 'annotations.json'} --minutes 10 --checkpoint default "
        f"--output {run} --cache {folder / 'cache'} --threads 2"
    ).split(" ")
    assert page.text() == "Encoding the labelled images; 10 minutes of training follow."
    (run / "decoder").mkdir()
    (run / "decoder" / "run.yaml").write_text("steps: 80\n")
    (run / "decoder" / "log.csv").write_text("step,lr\n0,0\n20,1e-4\n")
    assert page.text() == "Training: **25 %** of 10 minutes."
    with pytest.raises(InvalidInputError, match="wait until it is done, or stop it"):
        page.start("weights")
    for kind, after in (("box", 0.75), ("point", 0.625)):
        (run / f"label_iou_{kind}.json").write_text(json.dumps({"before": [0.5], "after": [after, 0.1, 0.9], "images": 3}))
    started[0].end(0)
    finish(page)
    assert page.text() == (
        "Adapted. IoU with the labels of 3 held-out images: by box 0.500 before, **0.750** after; by point 0.500 before, "
        "**0.625** after."
    )
    name = str(run / "weights")
    assert page.finished == [Adapted("weights", name)]
    assert page.demo.models == ("weights", "exported", name)
    page.start(name)
    assert started[1].command[started[1].command.index("--checkpoint") + 1] == "default", "it starts anew"
    assert str(page.labels.folder / "runs" / "2") in started[1].command
    page.stop()
    finish(page)


def test_stopped_and_failed_runs_change_nothing(page):
    page, started = page
    page.stop()
    page.start("weights")
    page.stop()
    finish(page)
    assert page.text() == "Stopped. The model is as it was."
    page.start("weights")
    started[1].end(1, "labels: 2\nerror: there is no space left\n")
    finish(page)
    assert page.text() == "It failed: error: there is no space left"
    page.start("weights")
    started[2].end(0)
    finish(page)
    assert page.text().startswith("It failed: ")  # without a report
    assert page.finished == []
    assert page.demo.models == ("weights", "exported")


def test_what_cannot_be_adapted_is_refused(page):
    page, started = page
    with pytest.raises(InvalidInputError, match="exported cannot be adapted: choose weights"):
        page.start("exported")
    page.labels.remove(np.zeros((40, 60, 3), dtype=np.uint8))
    with pytest.raises(InvalidInputError, match=r"labelled images: 1\. Label 2 or more"):
        page.start("weights")
    assert started == []
