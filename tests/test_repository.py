"""What the public repository uses: workflows, forms and the citation, against the schemas that check-jsonschema brings."""

import configparser
import re
from pathlib import Path

import pytest
import yaml
from check_jsonschema import main
from click.testing import CliRunner

import groupmix_sam

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").iterdir())
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").iterdir() if path.name != "config.yml")


@pytest.mark.parametrize(
    ("schema", "paths"),
    [
        ("github-workflows", WORKFLOWS),
        ("github-issue-forms", FORMS),
        ("github-issue-config", [GITHUB / "ISSUE_TEMPLATE" / "config.yml"]),
        ("dependabot", [GITHUB / "dependabot.yml"]),
        ("citation-file-format", [ROOT / "CITATION.cff"]),
    ],
)
def test_schemas(schema, paths):
    done = CliRunner().invoke(main, ["--builtin-schema", f"vendor.{schema}", *map(str, paths)])
    assert done.exit_code == 0, done.output


def read(name):
    """Return a workflow; YAML 1.1 takes its `on` for true."""
    return yaml.safe_load((GITHUB / "workflows" / name).read_text())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_few_rights(path):
    workflow = read(path.name)
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets." not in path.read_text()
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        rights = job.get("permissions", {})
        assert rights.keys() <= {"id-token", "pages"}
        # What may publish runs no code of the repository's.
        assert not rights or not any("run" in step for step in job["steps"])
        for step in job["steps"]:
            action = step.get("uses", "actions/none@v0")
            owner, version = re.fullmatch(r"([\w-]+)/[\w-]+@(\S+)", action).groups()
            assert owner in ("actions", "pypa"), action
            # A hash, or a branch or tag of one major version, which dependabot keeps.
            assert re.fullmatch(r"(release/)?v\d+|[0-9a-f]{40}", version), action
            if action.startswith("actions/checkout@"):
                assert step["with"] == {"persist-credentials": False}


def test_the_same_script_runs_on_all_systems():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = re.findall(r":: Python :: (3\.\d+)", config["metadata"]["classifiers"])
    job = read("test.yml")["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == named
    assert config["options"]["python_requires"] == f">={named[0]}"
    assert {system.split("-")[0] for system in job["strategy"]["matrix"]["os"]} == {"ubuntu", "macos", "windows"}
    assert job["steps"][-1]["run"] == "bash .ci/run"


def test_forms_name_commands_and_pages_that_are_there():
    text = "".join(path.read_text() for path in FORMS)
    from groupmix_sam.cli import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(re.findall(r"`groupmix-sam ([\w-]+)", text)) <= commands
    assert all((ROOT / page).is_file() for page in re.findall(r"docs/\S+\.md", text))


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == groupmix_sam.__version__
    (paper,) = citation["references"]
    assert paper["doi"].endswith("arXiv.2403.10053")
    assert "2403.10053" in (ROOT / "README.md").read_text()
