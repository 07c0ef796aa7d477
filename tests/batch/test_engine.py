"""Ray starts twice in all, once for the module and once in a command of its own, which is killed."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import PureWindowsPath
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from typer.testing import CliRunner

from groupmix_sam.batch import engine as module
from groupmix_sam.batch.engine import MASKS, TRIES, Job, Segmenter, Totals, batch
from groupmix_sam.batch.prompt_table import read_prompt_table
from groupmix_sam.batch.storage import Folder, absolute
from groupmix_sam.cli import app
from groupmix_sam.errors import (
    ImageReadError,
    InvalidInputError,
    MissingExtraError,
    SaveError,
    WeightsError,
    WeightsNotFoundError,
)
from groupmix_sam.images import read_image, report_left_out
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.automatic import everything
from groupmix_sam.masks import decode_rle, encode_rle
from groupmix_sam.prompts import Prompt
from groupmix_sam.sam import build_sam_groupmix
from groupmix_sam.weights import save_weights

from ..inference.conftest import draw

# Ray's own: of options that it looks at itself, and of pipes that its processes leave to be closed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]

COUNT = 24
# Ray's workers would give way to whatever else this machine does.
NOT_NICE = ("RAY_worker_niceness", "0")


@pytest.fixture(scope="module")
def ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*NOT_NICE)
        with module._cluster() as ray:
            yield ray


@pytest.fixture(scope="module")
def weights(sam, tmp_path_factory):
    path = save_weights(sam, tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    return {"checkpoint": str(path), "encoder": "gmf_sam_test", "image_size": 256}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images that differ, of two sizes, and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "below").mkdir()
    for i in range(COUNT):
        image = draw(90 + i % 2, 120)
        image[: 10 + i] = 3 * i
        Image.fromarray(image).save(folder / ("below" if i % 3 else ".") / f"{i:02}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def prompts(images, tmp_path_factory):
    """Two prompts an image, one that is outside, and an image that is not there."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.csv"
    lines = ["image,left,top,right,bottom,x,y", "broken.jpg,1,2,30,40,,", "nowhere.png,,,,,5,6", "00.png,,,,,500,6"]
    for name in sorted(Folder(str(images)).names() - {"broken.jpg"}):
        lines += [f"{name},30,22,60,45,,", f"{name},,,,,45,30"]
    path.write_text("\n".join(lines))
    return path


def masks_of(output):
    return parquet.read_table(output / "masks", schema=MASKS).to_pylist()


def expected(weights, images, prompts):
    """Return the masks by image and prompt, of one predictor in this process."""
    predictor = Predictor(build_sam_groupmix(**weights))
    found = {}
    for name in read_prompt_table(prompts):
        if not name.endswith(".png") or not (images / name).is_file():
            continue
        predictor.set_image(read_image(images / name))
        first = 1 if name == "00.png" else 0
        box, score, _ = predictor.predict(box=np.array([30, 22, 60, 45]), multimask_output=False)
        found[name, first] = box[0], float(score[0])
        three, scores, _ = predictor.predict(np.array([[45, 30]]), np.array([1]))
        found[name, first + 1] = three[scores.argmax()], float(scores.max())
    return found


def check(rows, found):
    """Every mask is there once and is the one that was expected, and every error is."""
    assert len(rows) == len({(row["image"], row["prompt"]) for row in rows}) == len(found) + 3
    errors = {row["image"]: row["error"] for row in rows if row["error"]}
    assert "cannot be read as an image" in errors["broken.jpg"]
    assert "there is no image nowhere.png" in errors["nowhere.png"]
    assert "the point (500, 6) is outside the image of 120 x 90" in errors["00.png"]
    for row in rows:
        if not row["error"]:
            mask, score = found[row["image"], row["prompt"]]
            assert np.array_equal(decode_rle(row), mask)
            assert row["score"] == pytest.approx(score)
    assert len({row["counts"] for row in rows}) > COUNT  # the images' masks do differ


def parts(output):
    return len(list((output / "masks").glob("part-*")))


def kill_a_worker(output, killed):
    """Kill the process of an actor once there is a part."""
    workers = []
    while not workers:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has ended
                workers += [process] * ("MapWorker" in " ".join(process.cmdline()))
    while not parts(output):
        time.sleep(0.002)
    workers[0].kill()
    killed.append(parts(output))


def test_a_killed_worker_loses_nothing_and_masks_are_those_of_one_process(ray, weights, images, prompts, tmp_path):
    killed = []
    watcher = threading.Thread(target=kill_a_worker, args=(tmp_path, killed))
    watcher.start()
    totals = batch(images, tmp_path, prompts, batch_size=1, workers=1, **weights)
    watcher.join()
    assert 0 < killed[0] < COUNT + 2
    found = expected(weights, images, prompts)
    check(masks_of(tmp_path), found)
    assert totals == Totals(COUNT + 2, 2 * COUNT, 3, 0)
    assert len(list((tmp_path / "masks").iterdir())) == COUNT + 2  # nothing half written
    again = batch(images, tmp_path, prompts, batch_size=1, workers=1, **weights)
    assert again == Totals(before=COUNT + 2)


def each(processes, action):
    """Do something to every process that has not ended; return those."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            action(process)
            found.append(process)
    return found


def test_a_killed_command_goes_on(ray, weights, images, prompts, tmp_path):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in weights.items()]
    command = [sys.executable, "-m", "groupmix_sam", "batch", str(images), "--output", str(tmp_path), "--workers", "1"]
    command += ["--prompts", str(prompts), "--batch-size", "1", *options]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | dict([NOT_NICE])
    temporary = tempfile.mkdtemp(prefix="t-")  # a short name, as the names of sockets may not be long
    driver = subprocess.Popen(command, env=environment | {"TMPDIR": temporary})
    while not parts(tmp_path):
        assert driver.poll() is None
        time.sleep(0.002)
    family = {p: p.name() for p in each(psutil.Process(driver.pid).children(recursive=True), psutil.Process.suspend)}
    assert 0 < parts(tmp_path) < COUNT + 2  # and nothing more is done while we look around
    listening = [c.laddr.ip for p in family for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    driver.kill()
    driver.wait()
    each(family, psutil.Process.resume)
    assert listening
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    agents = [p for p in family if "Agent" in family[p]]  # which wait for minutes for their dead head
    _, alive = psutil.wait_procs([p for p in family if p not in agents], timeout=180)
    assert alive == []  # Ray's processes end with their driver
    psutil.wait_procs(each(agents, psutil.Process.kill))
    shutil.rmtree(temporary)
    before = parts(tmp_path)
    totals = batch(images, tmp_path, prompts, batch_size=1, workers=1, **weights)
    assert totals.before == before
    assert totals.images == COUNT + 2 - before
    check(masks_of(tmp_path), expected(weights, images, prompts))
    assert len(list((tmp_path / "masks").iterdir())) == COUNT + 2


def job(images, output, weights, **others):
    values = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "batch_size": 2, "threads": 1}
    values |= {"device": "auto", "gpus_per_worker": 0}
    return Job(**({"source": str(images), "output": str(output), "everything": True} | weights | values | others))


def table(*names):
    return pa.table({"image": names, "prompts": [None] * len(names), "part": [0] * len(names)})


def test_everything_is_what_one_process_finds(weights, tmp_path):
    """And an image too narrow for the model is an error, and one without a mask is a row without one."""
    (tmp_path / "in").mkdir()
    Image.fromarray(draw()).save(tmp_path / "in" / "a.png")
    Image.new("RGB", (4000, 1)).save(tmp_path / "in" / "line.png")
    done = Segmenter(job(tmp_path / "in", tmp_path, weights))(table("a.png", "line.png")).to_pylist()
    *rows, error = masks_of(tmp_path)
    predictor = Predictor(build_sam_groupmix(**weights))
    instances = everything(predictor, draw(), points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    assert done == [{"images": 2, "masks": len(instances), "errors": 1}]
    assert instances
    for row, instance in zip(rows, instances, strict=True):
        assert row["counts"] == encode_rle(instance.mask)["counts"]
        assert row["score"] == pytest.approx(instance.score)
    assert "too narrow" in error["error"]
    nothing = Segmenter(job(tmp_path / "in", tmp_path, weights, pred_iou_thresh=1.0)).segment("a.png", [])
    assert nothing == [{"image": "a.png", "size": [90, 120]}]


def test_default_is_never_a_folder(tmp_path, monkeypatch):
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    jobs = []
    monkeypatch.setattr(module, "_begin", lambda job, *_: jobs.append(job) or table())
    batch("photos", "out")
    batch("photos", "out", checkpoint="./default")
    assert [(job.checkpoint, job.exported) for job in jobs] == [("default", False), (str(tmp_path / "default"), True)]
    batch("photos", "out", checkpoint=tmp_path / "a.safetensors")
    batch("photos", "out", checkpoint="fast")
    batch("photos", "out", checkpoint="hf-hub:org/repo")
    assert [job.checkpoint for job in jobs[2:]] == [str(tmp_path / "a.safetensors"), "fast", "hf-hub:org/repo"]


def test_images_are_those_of_the_other_commands(weights, images, tmp_path, caplog):
    """Hidden ones are none, linked folders are followed, and what is left out is named."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "linked").symlink_to(images / "below")
    for name in ("a.jfif", "._a.jpg", ".b.png", "c.cr2", "d.txt"):
        (folder / name).touch()
    names = module._list(job(folder, tmp_path, weights), None)["image"].to_pylist()
    assert names == ["a.jfif", *sorted(f"linked/{path.name}" for path in (images / "below").iterdir())]
    assert [message.rpartition(": ")[2] for message in caplog.messages] == ["c.cr2"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf_8(tmp_path):
    """Which Parquet could not hold."""
    open(os.fsencode(tmp_path) + b"/b\xe4.png", "wb").close()
    with pytest.raises(InvalidInputError, match=r"a file whose name is not UTF-8 .*b\\xe4\.png.*: rename it"):
        Folder(str(tmp_path)).names()


def test_a_path_of_windows(monkeypatch):
    class Windows:
        def __init__(self, where):
            self.path = PureWindowsPath(where)

        def absolute(self):
            return PureWindowsPath("C:/data") / self.path

    monkeypatch.setattr("groupmix_sam.batch.storage.Path", Windows)
    assert absolute("photos\\line") == "C:/data/photos/line"
    assert absolute("s3://bucket/a") == "s3://bucket/a"


def test_a_part_that_kills_its_workers_is_given_up(weights, images, tmp_path):
    worker = Segmenter(job(images, tmp_path, weights))
    for number in range(TRIES):
        Folder(str(tmp_path)).write(f"masks/.part-00000000.parquet.{number}", b"")
    assert worker(table("00.png")).to_pylist() == [{"images": 1, "masks": 0, "errors": 1}]
    assert [row["error"][:19] for row in masks_of(tmp_path)] == ["a worker died 3 tim"]
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["part-00000000.parquet"]


def test_a_uri_is_as_good_as_a_path(weights, images, prompts, tmp_path):
    worker = Segmenter(job(f"fsspec+file://{images}", f"fsspec+file://{tmp_path}/out", weights, everything=False))
    worker(
        table("00.png").set_column(
            1, "prompts", [[[asdict(p) for p in read_prompt_table(f"fsspec+file://{prompts}")["00.png"][1:2]]]]
        )
    )
    (row,) = masks_of(tmp_path / "out")
    assert np.array_equal(decode_rle(row), expected(weights, images, prompts)["00.png", 1][0])


def test_prompts_of_a_parquet_file_are_those_of_a_csv(tmp_path):
    (tmp_path / "a.csv").write_text("image,x,y,left,top,right,bottom\n01,1,2,,,,\n01,,,1,2,3,4\n02,5,6,7,8,9,10\n")
    rows = [
        {"image": "01", "points": [[1, 2]], "labels": [1], "box": None},
        {"image": "01", "points": [], "labels": [], "box": [1, 2, 3, 4]},
        {"image": "02", "points": [[5, 6]], "labels": None, "box": [7, 8, 9, 10]},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "named.csv").write_text("image,x,y,category\n01,1,2,nut\n")
    assert read_prompt_table(tmp_path / "named.csv")["01"] == [Prompt([[1.0, 2.0]], category="nut")]
    from_csv = read_prompt_table(tmp_path / "a.csv")
    assert from_csv == read_prompt_table(tmp_path / "a.parquet")
    assert from_csv["02"] == [Prompt([[5.0, 6.0]], [1], [7.0, 8.0, 9.0, 10.0])]
    assert len(from_csv["01"]) == 2


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "has no prompts"),
        ("image,x,y\n", "has no prompts"),
        ("path,x,y\na,1,2\n", "unknown, 'path'"),
        ("image,x,y,label\na,1,2,0\n", "unknown, 'label': use image, x, y, left"),
        ("x,y\n1,2\n", "prompt 1 of .*: give image"),
        ("image,x,y\na,1,\n", "prompt 1"),
        ("image,left,top\na,1,2\n", "prompt 1"),
        ("image,x,y\na,1,2\na,b,3\n", "prompt"),
        ("image\na\n", "prompt 1"),
        ("image,x,y\na,1\n", "prompt 1"),
        (b"image,x,y\n\xe4,1,2\n", "cannot be read .* in UTF-8"),
    ],
)
def test_tables_refused(tmp_path, content, match):
    (tmp_path / "a.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidInputError, match=match):
        read_prompt_table(tmp_path / "a.csv")


def test_what_cannot_be_run(weights, images, prompts, tmp_path, monkeypatch):
    with pytest.raises(InvalidInputError, match="threads is 0"):
        batch(images, tmp_path, threads=0, **weights)
    for gpus in (-1, 1.5, float("nan"), float("inf")):
        with pytest.raises(InvalidInputError, match=f"gpus_per_worker is {gpus}: give 0, a part of one GPU, or a whole number"):
            batch(images, tmp_path, gpus_per_worker=gpus, **weights)
    with pytest.raises(InvalidInputError, match="pred_iou_thresh is 88: give a number from 0 to 1"):
        batch(images, tmp_path, pred_iou_thresh=88, **weights)
    with pytest.raises(InvalidInputError, match="workers is 0"):
        batch(images, tmp_path, workers=0, **weights)
    with pytest.raises(WeightsError, match="there is no weights file"):
        batch(images, tmp_path, checkpoint="none.safetensors")
    with pytest.raises(InvalidInputError, match="has no image in it"):
        batch(tmp_path / "none", tmp_path, **weights)
    with pytest.raises(InvalidInputError, match="gopher://x cannot be opened"):
        batch("gopher://x", tmp_path, **weights)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightsNotFoundError, match=r"there is no weights file .*model\.safetensors"):
        batch(images, tmp_path / "out", prompts, checkpoint=str(images))
    (tmp_path / "config.json").touch()
    with pytest.raises(InvalidInputError, match="was exported, with its own encoder and size"):
        batch(images, tmp_path / "out", prompts, checkpoint=str(tmp_path), image_size=512)
    with pytest.raises(SaveError, match="could not be written"):
        Folder(str(tmp_path / "file")).write("a", b"")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"groupmix-sam\[ray\]"):
        batch(images, tmp_path / "out", prompts, **weights)
    with pytest.raises(InvalidInputError, match="is of another run, with another prompts, everything:"):
        batch(images, tmp_path / "out", **weights)
    (tmp_path / "out" / "images.parquet").write_bytes(b"PAR1")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        batch(images, tmp_path / "out", prompts, **weights)
    (tmp_path / "out" / "run.json").write_bytes(b"{")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        batch(images, tmp_path / "out", prompts, **weights)


def test_keys_of_object_storage_are_written_nowhere(images, weights, tmp_path, monkeypatch, caplog):
    """Not into run.json, the rows of errors, what is logged, errors and what is printed."""
    secret = f"file://name:hunter2@{images}"
    monkeypatch.setattr(module, "_list", lambda *_: table("a.png").drop(["part"]))
    module._begin(job(secret, tmp_path, weights), Folder(str(tmp_path)), None)
    assert json.loads((tmp_path / "run.json").read_text())["source"] == f"file://***@{images}"
    assert module._describe(OSError(secret)) == f"OSError: file://***@{images}"
    report_left_out(secret, ["a.xyz"])
    with pytest.raises(InvalidInputError, match=r"gopher://\*\*\*@x cannot be opened") as error:
        Folder("gopher://name:hunter2@x")
    monkeypatch.setattr("groupmix_sam.batch.engine.batch", lambda *_, **__: Totals(3, 4))
    printed = CliRunner().invoke(app, ["batch", "photos", "--output", "s3://name:hunter2@x"]).output
    assert printed == "3 images: 4 masks and 0 errors in s3://***@x/masks\n"
    assert "hunter2" not in f"{caplog.text} {error.value}"


def test_errors_are_told_by_the_exit_code(monkeypatch):
    monkeypatch.setattr("groupmix_sam.batch.engine.batch", lambda *_, **__: Totals(3, 4, errors=2, before=1))
    with pytest.raises(ImageReadError, match="2 images or prompts could not be used: the column error in out/masks"):
        CliRunner().invoke(app, ["batch", "photos", "--output", "out"], catch_exceptions=False)
    monkeypatch.setattr("groupmix_sam.batch.engine.batch", lambda *_, **__: Totals(3, 4))
    assert CliRunner().invoke(app, ["batch", "photos", "--output", "out"]).stdout == (
        "3 images: 4 masks and 0 errors in out/masks\n"
    )


def test_more_workers_than_cpus(ray, images, weights, tmp_path):
    with pytest.raises(InvalidInputError, match="10000 workers of 1 CPUs each need 10000, and Ray has"):
        module._workers(ray, 10_000, job(images, tmp_path, weights))


@pytest.mark.parametrize(
    ("threads", "gpus", "expected"), [(1, 0, 16), (4, 0, 4), (4, 1, 2), (4, 0.5, 4), (1, 0.25, 8), (1, 2, 1), (32, 0, 1)]
)
def test_workers_by_cpus_and_gpus(images, weights, tmp_path, threads, gpus, expected):
    """Of a machine with 16 CPUs and 2 GPUs, which Ray tells of."""
    machine = SimpleNamespace(cluster_resources=lambda: {"CPU": 16.0, "GPU": 2.0})
    wanted = job(images, tmp_path, weights, threads=threads, gpus_per_worker=gpus)
    if threads > 16:
        with pytest.raises(InvalidInputError, match="1 workers of 32 CPUs each need 32, and Ray has 16"):
            module._workers(machine, None, wanted)
        return
    assert module._workers(machine, None, wanted) == expected
    if gpus and threads == 1:
        with pytest.raises(InvalidInputError, match=rf"9 workers of {gpus} GPUs each need {9 * gpus:g}, and Ray has 2"):
            module._workers(machine, 9, wanted)


def test_ray_is_asked_for_gpus(images, weights, tmp_path):
    """And its workers run on them; a GPU was not there."""
    asked = {}
    rows = SimpleNamespace(iter_rows=lambda: iter([{"images": 1}]))
    mapped = SimpleNamespace(map_batches=lambda kind, **options: asked.update(options) or rows)
    context = SimpleNamespace(copy=SimpleNamespace)
    data = SimpleNamespace(
        DataContext=SimpleNamespace(get_current=lambda: context, current=lambda _: nullcontext()),
        from_arrow=lambda blocks: mapped,
        ActorPoolStrategy=lambda size: size,
    )
    wanted = job(images, tmp_path, weights, threads=3, gpus_per_worker=0.5)
    assert list(module._rows(SimpleNamespace(data=data), wanted, [table("a.png")] * 4, 3)) == [{"images": 1}]
    assert (asked["num_cpus"], asked["num_gpus"], asked["compute"]) == (3, 0.5, 3)


@pytest.mark.parametrize(
    ("device", "gpus", "exported", "expected"),
    [
        ("auto", 0, False, "cpu"),
        ("auto", 1, False, "cuda"),
        ("auto", 0.5, True, "cuda"),
        ("auto", 0, True, "auto"),
        ("GPU", 0, True, "GPU"),
        ("mps", 0, False, "mps"),
    ],
)
def test_where_a_worker_runs(images, tmp_path, monkeypatch, device, gpus, exported, expected):
    """Without a GPU from Ray not on one: all workers would share it."""
    if exported:
        (tmp_path / "config.json").touch()
    monkeypatch.setattr(Predictor, "from_pretrained", lambda checkpoint, **options: options)
    wanted = job(
        images, tmp_path, {"checkpoint": str(tmp_path)}, device=device, gpus_per_worker=gpus, encoder=None, image_size=None
    )
    assert wanted.predictor()["device"] == expected
