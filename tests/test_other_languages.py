"""The examples in C++ and JavaScript, and `groupmix-sam serve`, on one exported folder: their masks are Python's.

The folder has graphs that are written by hand and, before a release, those of the fast weights.
"""

import http.client
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupmix_sam import build_sam_groupmix
from groupmix_sam.images import read_image
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.export.exporter import export
from groupmix_sam.masks import mask_iou

from .graphs import write_folder
from .release import ALL

pytestmark = pytest.mark.release

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
COFFEE = EXAMPLES / "coffee.jpg"
BOX = [170, 16, 420, 312]
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module", params=["graphs", "fast"] if ALL else ["graphs"])
def exported(request, tmp_path_factory):
    """A folder for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("languages") / "exported"
    if request.param == "graphs":
        return write_folder(folder)
    export(build_sam_groupmix("fast"), folder, [read_image(COFFEE)])
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """Without a JPEG's loss, which decoders differ in."""
    path = tmp_path_factory.mktemp("photo") / "coffee.png"
    Image.open(COFFEE).save(path)
    return path


@pytest.fixture(scope="module")
def mask(exported):
    predictor = Predictor.from_pretrained(exported, threads=1)
    predictor.set_image(read_image(COFFEE))
    return predictor.predict(box=np.array(BOX), multimask_output=False)[0][0]


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(command, exported, photo, mask, folder):
    """Run an example by its command; then give it what it cannot use."""
    box = ",".join(map(str, BOX))
    out = run(*command, exported, photo, box, folder / "mask.png")
    assert re.fullmatch(r"score -?\d\.\d{4}\n", out)
    got = np.asarray(Image.open(folder / "mask.png"))
    assert set(np.unique(got)) == {0, 255}
    assert 0.05 < mask.mean() < 0.95
    assert mask_iou(got == 255, mask) >= 0.999
    for wrong in ((exported, ROOT / "setup.cfg", box), (exported, photo, "1,2,3"), (folder / "nowhere", photo, box)):
        done = subprocess.run([*map(str, command), *map(str, wrong), "no.png"], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("segment: ")


def test_cpp(exported, photo, mask, tmp_path):
    openvino = importlib.util.find_spec("openvino")
    lacks = [name for name in ("cmake", "c++") if shutil.which(name) is None]
    lacks += [] if Path("/usr/include/stb/stb_image.h").is_file() else ["libstb-dev"]
    lacks += [] if openvino else ["the Python package openvino, which has the library"]
    if lacks:
        pytest.skip(f"needs {', '.join(lacks)}")
    where = Path(openvino.origin).parent / "cmake"
    run(
        "cmake",
        "-S",
        EXAMPLES / "cpp",
        "-B",
        tmp_path,
        f"-DOpenVINO_DIR={where}",
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror",
    )
    run("cmake", "--build", tmp_path)
    check([tmp_path / "segment"], exported, photo, mask, tmp_path)


def test_node(exported, photo, mask, tmp_path):
    if shutil.which("node") is None or not (EXAMPLES / "node" / "node_modules" / "sharp").is_dir():
        pytest.skip("needs node, and npm install in examples/node")
    check(["node", EXAMPLES / "node" / "segment.js"], exported, photo, mask, tmp_path)


def test_examples_are_short():
    for path in (EXAMPLES / "cpp" / "segment.cpp", EXAMPLES / "node" / "segment.js"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 150


def test_serve(exported, mask, tmp_path):
    """From the command line: the token is not in the list of processes, and what was asked is answered after SIGTERM."""
    shutil.copy(COFFEE, tmp_path)
    command = [sys.executable, "-m", "groupmix_sam", "serve", "--checkpoint", exported, "--root", tmp_path, "--port", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "GROUPMIX_SAM_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as process:
        try:
            port = int(re.match(r"serving at http://127\.0\.0\.1:(\d+)/docs; Ctrl-C ends it\n", process.stdout.readline())[1])

            def ask(method, path, body=None, token=TOKEN):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
                headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                return answer.status, content

            assert ask("POST", "/images/open", {"path": "coffee.jpg"}, "wrong")[0] == 401
            status, content = ask("POST", "/images/open", {"path": "coffee.jpg"})
            assert status == 201
            wanted = {"prompts": [{"box": BOX}], "format": "png"}
            status, content = ask("POST", f"/images/{json.loads(content)['id']}/masks", wanted)
            assert status == 200
            assert mask_iou(np.asarray(Image.open(io.BytesIO(content))) == 255, mask) >= 0.999
            if (words := Path(f"/proc/{process.pid}/cmdline")).exists():
                assert TOKEN.encode() not in words.read_bytes()
            with ThreadPoolExecutor(1) as pool:
                last = pool.submit(ask, "POST", "/images/open", {"path": "coffee.jpg"})
                while b"groupmix_sam_waiting 1.0" not in ask("GET", "/metrics")[1] and not last.done():
                    pass
                process.send_signal(signal.SIGTERM)
                assert last.result()[0] == 201
            rest = process.communicate(timeout=120)[0]
        finally:
            process.kill()
    assert rest == "stopped\n"
    assert process.returncode == 0
