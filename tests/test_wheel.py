"""What is published: the wheel, built from the sdist; and the wheel in an environment of its own, without a network."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
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


def files_of_the_repository() -> list[str]:
    """Return the files that git has, or would have."""
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT).split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """What `python -m build` makes of a clean copy: an sdist, and a wheel of the sdist."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in files_of_the_repository():
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "copy" / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "copy")
    return folder / "dist"


def test_pypi_would_take_it(dist):
    """twine reads the metadata and renders the README; PyPI's limit is 100 MB."""
    files = sorted(dist.iterdir())
    assert [path.suffix for path in files] == [".whl", ".gz"]
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    assert all(path.stat().st_size < 40e6 for path in files)


def test_what_the_wheel_holds(dist):
    """All of the package and nothing else: no tests, no docs, no photos; and the licence."""
    package = {name for name in files_of_the_repository() if name.startswith("groupmix_sam/")}
    (wheel,) = dist.glob("*.whl")
    held = set(ZipFile(wheel).namelist())
    metadata = {name for name in held if ".dist-info/" in name}
    named = {name.partition("/")[2] for name in metadata}
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE", "licenses/NOTICE"} <= named
    assert held - metadata == {*package, "groupmix_sam_cli.py"}
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    assert {*package, "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"} <= inside
    assert not any(name.startswith(("docs/", "examples/", "benchmarks/")) for name in inside)


def test_wheel_in_a_clean_environment(dist, tmp_path):
    (wheel,) = dist.glob("groupmix_sam-*.whl")
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
