"""Every command and every Python block of README and docs, as a reader would run them: a wrong or renamed option fails here.

A page's commands run one after the other in a folder that has what they name: photos, a table of prompts, a video, weights.
They run as they stand, with the arguments of `SMALL` after them, so that they take seconds; of an option that is
given twice the last one counts. A block below `<!-- test: skip, why -->` is not run: the command line reads its commands
whole, and stops. `<!-- table: NAME -->` is what `benchmarks/report.py` writes.
"""

import argparse
import configparser
import json
import os
import re
import runpy
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import typer.main
from typer.testing import CliRunner

import groupmix_sam.distill  # noqa: F401
from groupmix_sam import build_sam_groupmix
from groupmix_sam.annotations import AnnotatedImage, Instance, to_coco, to_labelme
from groupmix_sam.cli import app
from groupmix_sam.weights import save_pretrained, save_weights

from .distill.conftest import save_mobile_sam
from .documents import PAGES, ROOT, SHELL, anchors, blocks, code_spans, commands, links, name, options, python
from .evaluate.images import draw_dataset
from .hub import COMMIT, running_hub

COFFEE = ROOT / "examples" / "coffee.jpg"
MAIN = typer.main.get_command(app)
OURS = MAIN.commands

# What makes a command small. The files are untrained weights of `gmf_sam_test`.
SMALL = {
    "adapt": ["--minutes", "0.001", "--cache", "teacher"],
    "distill": ["--encoder", "gmf_sam_test", "--minutes", "0.001", "--cache", "teacher"],
    "encoders": ["--encoder", "resnet18", "--epochs", "1", "--image-size", "64", "--batch-size", "4", "--workers", "0"],
    "evaluate": ["--image-size", "256", "--limit", "1"],
    "everything": ["--points-per-side", "2", "--image-size", "256"],
    "profile": ["gmf_sam_test", "--image-size", "64", "--rounds", "0"],
    "segment": ["--image-size", "256"],
    "stream": ["--image-size", "256", "--limit", "2"],
}
# More for those that have an option already.
ALSO = {
    "--reference": ["--reference", "other.safetensors"],
    "--decoder-minutes": ["--decoder-minutes", "0.001"],
    "--points-per-side": ["--points-per-side", "2", "--confidence", "0"],
}
# Where an option of a script is named.
SCRIPTS = [*sorted((ROOT / "benchmarks").glob("*.py")), *sorted((ROOT / "examples").glob("*.py"))]
ADDED = re.compile(r'add_argument\(\s*"(--[\w-]+)"')


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with all that the pages name."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "examples").mkdir()
    for place in ("examples/coffee.jpg", "photo.jpg", "frame.jpg"):
        shutil.copy(COFFEE, desk / place)
    draw_dataset(desk / "DATA", count=2)
    for folder in ("my_photos", "my_frames", "photos"):
        shutil.copytree(desk / "DATA" / "images", desk / folder)
    shutil.copy(desk / "DATA" / "annotations.json", desk / "my_frames")
    for kind in ("nuts", "bolts"):
        shutil.copytree(desk / "DATA" / "images", desk / "CLASSES" / kind)
    shutil.copytree(desk / "CLASSES", desk / "DATA" / "train")
    shutil.copytree(desk / "CLASSES", desk / "DATA" / "val")
    (desk / "hands.csv").write_text("image,x,y\n0.png,20,20\n1.png,64,30\n")
    shutil.copy(desk / "hands.csv", desk / "prompts.csv")
    (desk / "prompts.json").write_text('{"boxes": [[10, 10, 60, 50]]}')
    video = cv2.VideoWriter(str(desk / "line.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (600, 400))
    for _ in range(2):
        video.write(cv2.imread(str(COFFEE)))
    video.release()
    (desk / "labelled").mkdir()
    shutil.copy(COFFEE, desk / "labelled")
    square = np.zeros((400, 600), dtype=bool)
    square[100:300, 200:400] = True
    coffee = AnnotatedImage(desk / "labelled" / "coffee.jpg", square.shape, [Instance(square)])
    (desk / "labelled" / "coffee.json").write_text(json.dumps(to_labelme(coffee, desk / "labelled")))
    (desk / "labelled" / "annotations.json").write_text(json.dumps(to_coco([coffee], desk / "labelled")))
    save_mobile_sam(desk / "mobile_sam.pt")
    for weights in ("tiny", "other"):
        save_weights(build_sam_groupmix(None, encoder="gmf_sam_test"), desk / f"{weights}.safetensors")
    save_pretrained(build_sam_groupmix(), desk / "my_weights", half=True)
    shutil.copytree(desk / "my_weights", desk / "exported")  # an export takes half a minute, and is loaded alike
    for result in ("A.json", "B.json"):
        run(desk, ["groupmix-sam", "evaluate", "DATA", "--output", result])
    return desk


@pytest.fixture
def hub(desk, monkeypatch):
    with running_hub() as hub:
        hub.files = {path.name: path.read_bytes() for path in (desk / "my_weights").iterdir()}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(desk / "cache"))
        yield hub


DONE: set[tuple[str, ...]] = set()


def run(desk, words):
    """Run a command of ours at the desk, made small; once."""
    arguments = [*words[1:], *([] if "--compare" in words else SMALL.get(words[1], []))]
    if words[1] in ("adapt", "evaluate") and not {"--checkpoint", "--compare"}.intersection(words):
        arguments += ["--checkpoint", "tiny.safetensors"]
    for given, more in ALSO.items():
        if given in words and not (given == "--points-per-side" and words[1] == "everything"):
            arguments += more
    if tuple(arguments) in DONE:
        return
    DONE.add(tuple(arguments))
    if words[1] == "push" or "hf-hub:" in " ".join(words):  # its client reads the Hub's address once, when it is imported
        child(desk, "-m", "groupmix_sam", *arguments)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        patch.setattr("groupmix_sam.distill.adaptation.POINTS", 1)  # to measure the agreement by
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, f"{words}: {done.output}"


def child(desk, *arguments):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], cwd=desk, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"


def parse(words):
    """Have the command line read its arguments and stop; what it does not know raises click's UsageError."""
    command, *arguments = words
    if command == "--help":
        return
    assert command in OURS, f"there is no command {command}"
    OURS[command].make_context(command, arguments)


def parse_script(path, arguments):
    """The same of a script with argparse, which exits."""

    class ParsedError(Exception):
        pass

    read = argparse.ArgumentParser.parse_args

    def read_and_stop(self, *args, **kwargs):
        read(self, *args, **kwargs)
        raise ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", read_and_stop)
        patch.setattr(sys, "argv", [str(path), *arguments])
        patch.syspath_prepend(str(path.parent))
        with pytest.raises(ParsedError):
            runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_commands(page, desk, hub):
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    for line, words, skipped in commands(page):
        text = " ".join(words)
        where = f"{name(page)}:{line}: {text}"
        if "-m groupmix_sam" in text:  # after torchrun or accelerate
            words = ["groupmix-sam", *words[words.index("groupmix_sam") + 1 :]]
        if words[0] == "groupmix-sam":
            try:
                parse(words[1:])
            except Exception as e:
                raise AssertionError(f"{where}: {e}") from e
            if not skipped:
                run(desk, words)
        elif words[0] == "make":
            assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in words[1:]), where
        elif words[:2] == ["pip", "install"]:
            for extras in re.findall(r"groupmix-sam\[(.*?)\]", text):
                assert set(extras.split(",")) <= set(config["options.extras_require"]), where
        elif text.startswith("python benchmarks/"):  # takes minutes
            parse_script(ROOT / words[1], words[2:])
        elif text.startswith("python examples/"):  # tests/test_examples.py runs them
            assert (ROOT / words[1]).is_file(), where
        else:
            assert skipped, f"{where}: run it here, or write <!-- test: skip, why --> above its block"


@pytest.mark.parametrize("page", [page for page in PAGES if python(page)], ids=name)
def test_python(page, desk, hub, monkeypatch):
    script = python(page)
    if "hub" in script or "groupmix_sam.batch" in script:  # Ray warns of what is not ours
        child(desk, "-c", script)
    else:
        monkeypatch.chdir(desk)
        exec(compile(script, name(page), "exec"), {"__name__": "__main__"})
    if "push_to_hub(sam" in script:
        assert set(hub.uploads) == {"README.md", "config.json", "model.safetensors"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_and_commands_in_the_text(page):
    known = {option for command in (MAIN, *OURS.values()) for p in command.params for option in (*p.opts, *p.secondary_opts)}
    known |= {option for script in SCRIPTS for option in ADDED.findall(script.read_text(encoding="utf-8"))}
    known |= {word for command in commands(page) for word in command.words if word.startswith("--")}  # of other programs too
    assert options(page) <= known
    for span in code_spans(page):
        words = span.split()
        if words[:1] == ["groupmix-sam"] and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in OURS, f"there is no command {words[1]}"
            own = {option for p in OURS[words[1]].params for option in (*p.opts, *p.secondary_opts)}
            assert {word for word in words if word.startswith("--")} <= own, span


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tables_are_what_the_results_say(page):
    report = runpy.run_path(str(ROOT / "benchmarks" / "report.py"))
    text = page.read_text(encoding="utf-8")
    assert text == report["fill"](text), "run python benchmarks/report.py"
    assert page in report["PAGES"] or "<!-- table:" not in text.replace("`<!-- table:", "")


def test_every_result_is_shown():
    report = runpy.run_path(str(ROOT / "benchmarks" / "report.py"))
    shown = {found for page in PAGES for found in re.findall(r"<!-- table: (\w+) -->\n", page.read_text(encoding="utf-8"))}
    assert shown == set(report["TABLES"])


def test_a_skipped_block_is_read():
    skipped = [block for page in PAGES for block in blocks(page) if block.skipped]
    assert {block.language for block in skipped} <= {*SHELL, "python"}
    for block in skipped:
        if block.language == "python":
            compile(block.text, "skipped", "exec")


def test_contributing_says_where_everything_is():
    parts = ("groupmix_sam/", "tests/", "benchmarks/")
    named = {ROOT / span for span in code_spans(ROOT / "CONTRIBUTING.md") if span.startswith(parts)}
    assert [path for path in named if not path.exists()] == []
    modules = {path for path in (ROOT / "groupmix_sam").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    modules = {path for path in modules if not path.name.startswith("_")}
    assert [path.name for path in modules if not any(other.is_relative_to(path) for other in named)] == []


def test_a_renamed_option_is_found():
    with pytest.raises(Exception, match="No such option"):
        parse(["segment", "photo.jpg", "--pont", "1,2"])
    with pytest.raises(Exception, match="Missing"):
        parse(["distill", "my_photos/"])


def test_the_pinned_commit_is_the_servers():
    assert COMMIT in python(ROOT / "docs" / "how" / "hub.md")
