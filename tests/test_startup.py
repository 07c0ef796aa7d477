"""What is imported before it is needed: nothing that takes long."""

import subprocess
import sys
from pathlib import Path

from .processes import python

ROOT = Path(__file__).parents[1]

# Each line is what the command line ended with.
WORDS = """
import os, sys
from groupmix_sam_cli import main

os.environ["COLUMNS"] = "200"
for words in (["--help"], ["--version"], ["segment", "--help"], ["segment", "photo.jpg", "--no-such-option"], []):
    sys.argv = ["groupmix-sam", *words]
    try:
        main()
    except SystemExit as e:
        print("ended with", e.code)
os.environ |= {"_GROUPMIX_SAM_COMPLETE": "complete_bash", "COMP_WORDS": "groupmix-sam everything --points", "COMP_CWORD": "2"}
sys.argv = ["groupmix-sam"]
try:
    main()
except SystemExit as e:
    print("ended with", e.code)
print([module for module in ("torch", "timm") if module in sys.modules])
"""

RUN = """
import sys
from groupmix_sam_cli import main

sys.argv = ["groupmix-sam", "segment", "nowhere.jpg", "--point", "1,1"]
try:
    main()
except SystemExit as e:
    print("ended with", e.code)
import timm
print(timm.is_model("gmf_sam_2282"))
"""

LIGHT = """
import sys, groupmix_sam, timm
assert timm.is_model("gmf_sam_2282")
print([m for m in ("segment_anything", "typer", "matplotlib", "groupmix_sam.sam") if m in sys.modules])
"""


def fresh(code: str) -> list[str]:
    """Run code in a new interpreter and return the lines that it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_command_line_knows_what_to_do_before_it_imports_torch():
    lines = fresh(WORDS)
    assert [line for line in lines if line.startswith("ended with")] == [f"ended with {code}" for code in (0, 0, 0, 2, 2, 0)]
    assert "--points-per-side" in lines
    assert lines[-1] == "[]"


def test_a_command_that_runs_has_the_encoders():
    assert python(RUN).stdout.splitlines() == ["ended with 1", "True"]


def test_the_package_imports_no_more_than_torch_and_timm():
    """People import it to register names: segment-anything waits until a Sam is built."""
    assert fresh(LIGHT) == ["[]"]


def test_python_dash_m():
    """For torchrun and accelerate launch; the processes of `python` have torch already."""
    code = "import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_module('groupmix_sam', run_name='__main__')"
    assert python(code).stdout.startswith("groupmix-sam ")
