"""New Python processes in which torch is imported already: that takes longer than most of what they are asked to do."""

import multiprocessing
import os
import socket
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

__all__ = ["Started", "python", "start", "together"]

_fork = multiprocessing.get_context("forkserver")
# Nothing that reads the environment when it is imported, as the Hub's client does.
_fork.set_forkserver_preload(["torch", "torchvision.models.feature_extraction", "segment_anything"])


class Started:
    """A process that runs `python -c code *args`, in a session of its own: `os.killpg` takes its `pid`."""

    def __init__(self, code: str, args: tuple[str, ...], env: dict[str, str]) -> None:
        self._code = code
        self._folder = tempfile.TemporaryDirectory()
        self._process = _fork.Process(target=_run, args=(code, args, {**os.environ, **env}, self._folder.name))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> CompletedProcess[str]:
        """Return what it came to; one that takes longer is killed."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        out, err = ((Path(self._folder.name) / name).read_text(encoding="utf-8") for name in ("out", "err"))
        done = CompletedProcess(self._code, self._process.exitcode or 0, out, err)
        self._process.close()
        self._folder.cleanup()
        return done


def start(code: str, *args: str, **env: str) -> Started:
    """Start `python -c code *args` in this process's environment and `env`."""
    return Started(code, args, env)


def python(code: str, *args: str) -> CompletedProcess[str]:
    """Run `python -c code *args` in this process's environment; it must end well."""
    return _well(start(code, *args))


def together(code: str, *args: str, count: int = 2) -> list[CompletedProcess[str]]:
    """Run `python -c code *args` in processes that know each other, as torchrun starts them; all must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    started = [start(code, *args, **world, RANK=str(i), LOCAL_RANK=str(i)) for i in range(count)]
    return [_well(process) for process in started]


def _well(process: Started) -> CompletedProcess[str]:
    done = process.wait()
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _run(code: str, args: tuple[str, ...], env: dict[str, str], folder: str) -> None:
    import torch

    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["-c", *args]
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        with open(Path(folder) / name, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(1)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
