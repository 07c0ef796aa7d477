"""The image's and the unit's commands are ones that the command line knows; neither is run where there is no docker."""

import configparser
import json
import re
import shlex

import pytest
import typer.main

from groupmix_sam.cli import app

from ..documents import ROOT

COMMANDS = typer.main.get_command(app).commands


def parse(words):
    assert words[0].rpartition("/")[2] == "groupmix-sam"
    return COMMANDS[words[1]].make_context(words[1], list(words[2:])).params


def test_dockerfile():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    export = parse(shlex.split(re.search(r"^RUN (groupmix-sam export .*)$", text, re.MULTILINE)[1]))
    serve = parse(json.loads(re.search(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)[1]))
    assert str(export["folder"]) == serve["checkpoint"] == "/opt/model"
    assert export["runtime"] == "openvino"
    assert serve["host"] == "0.0.0.0", "a container's loopback cannot be reached, so that a token is needed"
    assert serve["token"] is None
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001"]
    assert f"127.0.0.1:{serve['port']}/health" in text
    assert f"EXPOSE {serve['port']}\n" in text
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert set(re.search(r"'\.\[(.*)\]'", text)[1].split(",")) <= set(config["options.extras_require"])
    # What is installed and exported is copied, too.
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    needed = {
        "setup.cfg",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "NOTICE",
        "groupmix_sam",
        "groupmix_sam_cli.py",
        "examples",
    }
    assert re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) == [". ."]
    assert all((ROOT / name).exists() for name in needed)
    assert not needed & {*ignored}
    assert str(export["images"]) in needed
    compile(json.loads(re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", text, re.MULTILINE)[1])[2], "health", "exec")


def test_unit():
    text = (ROOT / "examples" / "groupmix-sam.service").read_text(encoding="utf-8")
    values = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    serve = parse(shlex.split(values["ExecStart"]))
    assert serve["token"] is None, "it comes from the environment's file"
    assert float(values["TimeoutStopSec"]) > serve["timeout"]


@pytest.fixture(autouse=True)
def _no_token(monkeypatch):
    monkeypatch.delenv("GROUPMIX_SAM_TOKEN", raising=False)
