"""New Python processes in which torch is imported already: that takes longer than most of what they are asked to do."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_fork = multiprocessing.get_context("forkserver")
# Nothing that reads the environment when it is imported, as the Hub's client does.
_fork.set_forkserver_preload(["torch", "torchvision.models.feature_extraction", "segment_anything"])


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run `python -c code *args` in this process's environment; it must end well."""
    with tempfile.TemporaryDirectory() as folder:
        process = _fork.Process(target=_run, args=(code, args, dict(os.environ), folder))
        process.start()
        process.join()
        out, err = ((Path(folder) / name).read_text(encoding="utf-8") for name in ("out", "err"))
    assert process.exitcode == 0, err
    return subprocess.CompletedProcess(code, 0, out, err)


def _run(code: str, args: tuple[str, ...], env: dict[str, str], folder: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["-c", *args]
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        with open(Path(folder) / name, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), stream.fileno())
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
