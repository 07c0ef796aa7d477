"""Adapt a model to saved labels: `groupmix-sam adapt --labels` in a process of its own, while the page goes on."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread

import yaml

from ..errors import GroupMixSamError, InvalidInputError
from .labels import Labels
from .session import Demo, MakePredictor

__all__ = ["Adapted", "Adapter"]

MIN_IMAGES = 2  # of which `adapt` holds one out


@dataclass(frozen=True)
class Adapted:
    """A finished adaptation: the names of the model before and after."""

    before: str
    after: str


class Adapter:
    """Adapts a page's models to its labels, one at a time. A run is in `runs/1`, `runs/2` and so on of the labels' folder.

    An adapted model joins the page's. Adapted again, it starts anew from the weights that it came from, on all labels.

    Args:
        demo: The models.
        labels: The labels.
        sources: What `adapt --checkpoint` takes for models, by their name; others cannot be adapted.
        load: Returns the name and the maker of predictors of a folder of weights.
        minutes: Training time of a run.
        arguments: Further ones for `adapt`.

    Attributes:
        finished: Those of this page.
    """

    def __init__(
        self,
        demo: Demo,
        labels: Labels,
        sources: Mapping[str, str],
        load: Callable[[str], tuple[str, MakePredictor]],
        minutes: float,
        arguments: Sequence[str] = (),
    ) -> None:
        self.demo, self.labels, self.minutes, self.arguments = demo, labels, minutes, list(arguments)
        self.finished: list[Adapted] = []
        self._sources, self._load = dict(sources), load
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._run = Path()
        self._text = ""
        self._lock = Lock()

    @property
    def running(self) -> bool:
        """Whether a model is being adapted."""
        return self._process is not None

    def start(self, model: str) -> None:
        """Begin to adapt a model.

        Raises:
            InvalidInputError: another one is being adapted, the model is an exported folder, or there are too few labels.
        """
        with self._lock:
            if self.running:
                raise InvalidInputError("a model is being adapted: wait until it is done, or stop it.")
            if model not in self._sources:
                raise InvalidInputError(f"{model} cannot be adapted: choose weights, not an exported folder.")
            _, images = self.labels.count()
            if images < MIN_IMAGES:
                raise InvalidInputError(f"labelled images: {images}. Label {MIN_IMAGES} or more; 20 are a good start.")
            runs = self.labels.folder / "runs"
            done = [int(run.name) for run in runs.glob("*") if run.name.isdecimal()]
            self._run = runs / str(max(done, default=0) + 1)
            self._run.mkdir(parents=True)
            command = [sys.executable, "-m", "groupmix_sam", "adapt", str(self.labels.images_folder)]
            command += ["--labels", str(self.labels.file), "--minutes", str(self.minutes), "--checkpoint", self._sources[model]]
            command += ["--output", str(self._run), "--cache", str(self.labels.folder / "cache"), *self.arguments]
            self._stopped, self._text = False, ""
            with (self._run / "output.txt").open("wb") as output:
                self._process = subprocess.Popen(  # noqa: S603  its arguments are the page's own
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
                )
            Thread(target=self._wait, args=(self._process, model), daemon=True).start()

    def stop(self) -> None:
        """End the adaptation, if there is one; the model stays as it was."""
        with self._lock:
            if self._process is not None:
                self._stopped = True
                self._process.terminate()

    def text(self) -> str:
        """Return how far it is, or how it ended."""
        if not self.running:
            return self._text
        try:
            steps = yaml.safe_load((self._run / "decoder" / "run.yaml").read_text(encoding="utf-8"))["steps"]
            with (self._run / "decoder" / "log.csv").open(newline="") as file:
                share = max((int(row["step"]) for row in csv.DictReader(file)), default=0) / steps
        except (OSError, KeyError, TypeError, ValueError):  # not there yet, or half written
            return f"Encoding the labelled images; {self.minutes:g} minutes of training follow."
        return f"Training: **{100 * share:.0f} %** of {self.minutes:g} minutes."

    def _wait(self, process: "subprocess.Popen[bytes]", model: str) -> None:
        """Wait for a run; take its weights."""
        code = process.wait()
        try:
            self._text = self._end(code, model)
        except (GroupMixSamError, OSError) as e:
            self._text = f"It failed: {e}"
        finally:
            self._process = None

    def _end(self, code: int, model: str) -> str:
        if self._stopped:
            return "Stopped. The model is as it was."
        if code:
            said = (self._run / "output.txt").read_text(encoding="utf-8", errors="replace").strip()
            return f"It failed: {said.splitlines()[-1] if said else f'exit status {code}'}"
        text = report(self._run)
        name, make = self._load(str(self._run / "weights"))
        self.demo.add(name, make)
        self._sources[name] = self._sources[model]
        self.finished.append(Adapted(model, name))
        return text


def report(run: Path) -> str:
    """Return what `adapt` measured on the held-out images."""
    lines = []
    for kind in ("box", "point"):
        found = json.loads((run / f"label_iou_{kind}.json").read_text(encoding="utf-8"))
        before, after = found["before"][0], found["after"][0]
        lines.append(f"by {kind} {before:.3f} before, **{after:.3f}** after")
    return f"Adapted. IoU with the labels of {found['images']} held-out images: {'; '.join(lines)}."
