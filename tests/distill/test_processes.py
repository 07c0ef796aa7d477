"""Runs in processes of their own: killed and gone on with, or two at the same work."""

import json
import os
import shutil
import signal
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from groupmix_sam.distill import Phase, Recipe, r2_score

from ..processes import python, start, together
from .conftest import GRID, rows_of, step_of, tiny_student

CROPS = Recipe(epochs=10, phases=(Phase(1.0, 64, 4),))
LONG = Recipe(epochs=10, phases=(Phase(0.6, 64, 4), Phase(0.4, 0, 2)))
RUN = """
import json, sys, time
from pathlib import Path
from timm.utils import ModelEmaV3
from groupmix_sam.distill import CachedImage, RunOptions, load_recipe, train_student
from tests.distill.conftest import PlainTeacher, tiny_student

files, recipe, folder, accumulate, hold = json.loads(sys.argv[1])
cached, folder = [CachedImage(Path(image), Path(maps)) for image, maps in files], Path(folder)
update = ModelEmaV3.update


def wait_and_update(average, student, step):
    while step == hold and not (folder.parent / f"go{hold}").exists():
        time.sleep(0.01)
    update(average, student, step)


ModelEmaV3.update = wait_and_update
options = RunOptions(resume=True, accumulate=accumulate, save_minutes=1e-9 if hold else 5)
train_student(tiny_student(), PlainTeacher(), cached[2:], cached[:2], folder, load_recipe(recipe), options)
"""


def arguments(cached, recipe, folder, accumulate=1, hold=0):
    """Return what RUN takes; a run that holds waits in that step until there is a file go{hold} beside the folder."""
    path = folder.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    files = [[str(image.image), str(image.maps)] for image in cached]
    return json.dumps([files, str(path), str(folder), accumulate, hold])


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.wait().stderr
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole_run(cached, tmp_path_factory):
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    python(RUN, arguments(cached, LONG, folder))
    assert len(rows_of(folder)) > 10
    return folder


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_goes_on_to_the_same_weights(cached, whole_run, tmp_path, how):
    """Killed twice in the middle, once in each phase, it ends bit for bit as one that was not."""
    folder = tmp_path / "killed"
    for at in (5, 26):
        process = start(RUN, arguments(cached, LONG, folder, hold=at + 1))
        reached = lambda at=at: (folder / "checkpoint.safetensors").is_file() and step_of(folder) >= at  # noqa: E731
        wait_for(reached, process)
        os.killpg(process.pid, how)  # to those that read images too, as schedulers do
        (tmp_path / f"go{at + 1}").touch()
        done = process.wait()
        assert done.returncode != 0
        if how == signal.SIGTERM:
            assert "go on with --resume" in done.stderr
        assert step_of(folder) in (at, at + 1)
    python(RUN, arguments(cached, LONG, folder))
    expected, found = (load_file(f / "encoder.safetensors") for f in (whole_run, folder))
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    keep = [(r["step"], r["features"], r["r2"]) for r in rows_of(whole_run) if r["r2"]]
    assert [(r["step"], r["features"], r["r2"]) for r in rows_of(folder) if r["r2"]][-1] == keep[-1]


def test_two_processes_give_one_process_losses(cached, tmp_path):
    """gloo on the CPU: two processes with a part of the batch each, against one with both parts, one after the other.

    As long as BatchNorm takes its statistics from the part: the running ones are the first process's, or of both parts.
    """
    python(RUN, arguments(cached, CROPS, tmp_path / "one", accumulate=2))
    together(RUN, arguments(cached, CROPS, tmp_path / "two"))
    one, two = ([float(r["features"]) for r in rows_of(tmp_path / name) if r["features"]] for name in ("one", "two"))
    assert len(one) == len(two) == 10
    assert one == pytest.approx(two, abs=1e-5)


SHARED = """
import json, sys
from pathlib import Path
from groupmix_sam.distill import cache_features, find_images, r2_score
from groupmix_sam.distill.run import start_accelerator
from tests.distill.conftest import GRID, PlainTeacher, tiny_student

accelerator, teacher = start_accelerator(), PlainTeacher()
cached, skipped = cache_features(find_images(sys.argv[1]), teacher, sys.argv[2], GRID)
score = r2_score(tiny_student().eval(), cached, GRID, accelerator)
found = [teacher.calls, [str(image.maps.name) for image in cached], [str(image) for image in skipped], score]
Path(sys.argv[2], f"{accelerator.process_index}.json").write_text(json.dumps(found))
"""


def test_two_processes_share_the_cache_and_r2(photos, cached, tmp_path):
    """Each asks the teacher for its half of the images; both come to what one process comes to."""
    images = shutil.copytree(photos, tmp_path / "photos")
    (images / "below" / "broken.png").write_bytes(b"no image")
    together(SHARED, str(images), str(tmp_path / "c"))
    found = [json.loads((tmp_path / "c" / f"{i}.json").read_text()) for i in range(2)]
    assert found[0][0] + found[1][0] == len(cached) == 6
    assert min(found[0][0], found[1][0]) >= 2
    assert found[0][1:] == found[1][1:]
    _, names, skipped, score = found[0]
    assert names == [image.maps.name for image in cached]
    assert skipped == [str(images / "below" / "broken.png")]
    assert score == pytest.approx(r2_score(tiny_student().eval(), cached, GRID), abs=1e-5)
