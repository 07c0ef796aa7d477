"""The wheel in an environment of its own: nothing of this folder on the path, nothing from the network."""

import os
import subprocess
import sys
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

# Run where only the wheel and what it requires are installed.
CHECK = """
import socket

def no_network(*args, **kwargs):
    raise AssertionError(f"asked the network for {args}")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = no_network

import sys
import numpy as np
import timm
from segment_anything import SamPredictor
import groupmix_sam

assert "site-packages" in groupmix_sam.__file__, groupmix_sam.__file__
names = set(timm.list_models("gmf_sam_*"))
assert {"gmf_sam_2282", "gmf_sam_2264", "gmf_sam_33124", "gmf_sam_3312", "gmf_sam_3344"} <= names, names
encoder = timm.create_model("gmf_sam_2282", pretrained=True)
sam = groupmix_sam.build_sam_groupmix()
assert all((a == b).all() for a, b in zip(encoder.state_dict().values(), sam.image_encoder.state_dict().values()))

from groupmix_sam.images import read_image

predictor = SamPredictor(sam)
predictor.set_image(read_image(sys.argv[1]))
masks, scores, _ = predictor.predict(box=np.array([170, 16, 420, 312]), multimask_output=False)
print(round(float(masks[0].mean()), 4), round(float(scores[0]), 3))
"""


def run(*command, **kwargs):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def required(requirements: list[str], extras: set[str], found: dict[str, Distribution]) -> None:
    """Add the distributions that these requirements name, and those that they require, as they are installed here."""
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            installed = distribution(requirement.name)
            assert requirement.specifier.contains(installed.version, prereleases=True), requirement
            if installed.name not in found or requirement.extras:
                found[installed.name] = installed
                required(installed.requires or [], requirement.extras, found)


def test_wheel_in_a_clean_environment(tmp_path):
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("groupmix_sam-*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_"))} | {"HF_HUB_OFFLINE": "1"}
    run(python, "-m", "pip", "install", "--no-deps", "--quiet", wheel, env=env)
    # What it requires is linked, as torch alone would take minutes to install.
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (metadata,) = site.glob("groupmix_sam-*.dist-info")
    found: dict[str, Distribution] = {}
    required(Distribution.at(metadata).requires, set(), found)
    assert {"torch", "timm", "segment-anything"} <= {name.lower().replace("_", "-") for name in found}
    assert "onnxruntime" not in found
    for file in (file for one in found.values() for file in one.files or []):
        if file.parts[0] != ".." and "__pycache__" not in file.parts:
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            if not (site / file).exists():
                (site / file).symlink_to(file.locate())
    share, score = map(float, run(python, "-c", CHECK, ROOT / "examples" / "coffee.jpg", cwd=tmp_path, env=env).split())
    # The cup and its coffee are about a fifth of the photo.
    assert 0.15 < share < 0.30
    assert score > 0.5
    overlay = tmp_path / "cup.png"
    command = python.with_name("groupmix-sam")
    out = run(command, "segment", ROOT / "examples" / "coffee.jpg", "--box", "170,16,420,312", "--output", overlay, env=env)
    assert f"wrote {overlay}" in out
    assert overlay.stat().st_size > 10_000
