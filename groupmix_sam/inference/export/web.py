"""From a Sam to a folder that any web server can serve: a page that segments images in the visitor's browser.

The page's own files are those of `web_page/`. The model is an exported folder for ONNX Runtime, whose weights are stored in
fp16, and which computes in fp32. The runtime is onnxruntime-web, which the user's own npm fetches.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam

from ...errors import GroupMixSamError, InvalidInputError, RuntimeUnavailableError, SaveError
from ...files import sha256
from ...images import ImageFile
from ...weights import HALF_FROM
from ..exported_folder import SINGLE_MASK
from ..predictor import Predictor
from .exporter import export
from .onnx import write_graphs
from .parity import DEFAULTS, Thresholds

__all__ = ["export_web"]

PAGE = Path(__file__).with_name("web_page")
PACKAGE = "onnxruntime-web@1.30.0"
# What npm's lock files call the integrity of the package's file.
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# Two builds, for WebGPU and for the processor. Many servers do not know `.mjs` as JavaScript.
RUNTIME_FILES = {
    "ort.webgpu.min.mjs": "ort.webgpu.min.js",
    "ort-wasm-simd-threaded.asyncify.mjs": "ort-wasm-simd-threaded.asyncify.js",
    "ort-wasm-simd-threaded.asyncify.wasm": "ort-wasm-simd-threaded.asyncify.wasm",
    "ort.wasm.min.mjs": "ort.wasm.min.js",
    "ort-wasm-simd-threaded.mjs": "ort-wasm-simd-threaded.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}


def export_web(
    sam: Sam,
    site: str | PathLike[str],
    images: Sequence[NDArray[np.uint8] | ImageFile],
    *,
    runtime: Path | None = None,
    thresholds: Thresholds = DEFAULTS,
    graphs: Path | None = None,
) -> dict[str, Any]:
    """Write a page with its model and its runtime to a new folder; return the parity report of the model.

    Args:
        sam: A model built by `build_sam_groupmix`, on the CPU.
        site: To make; it appears whole or not at all. `site/model` is a folder that `Predictor.from_pretrained` runs.
        images: On which the masks are compared with those of the Sam in fp32, as in `export`.
        runtime: The file that `npm pack` writes of `PACKAGE`; by default npm is run for it.
        thresholds: What the masks' IoU must reach.
        graphs: A folder in which `write_graphs` has written this Sam in fp32.

    Raises:
        InvalidInputError: the folder is there, or the runtime's file is another one.
        RuntimeUnavailableError: there is no npm, or it cannot fetch the runtime.
        MissingExtraError: a package for the export is missing.
        ParityError: the masks differ too much from PyTorch's.
        SaveError: the folder cannot be written.
    """
    site = Path(site)
    if site.exists():
        raise InvalidInputError(f"{site} is there already: give a new folder, or remove it.")
    if not site.parent.is_dir():
        raise InvalidInputError(f"there is no folder {site.parent}: make it first.")
    part = site.with_name(f".{site.name}.{os.getpid()}.part")
    try:
        shutil.copytree(PAGE, part)
        _unpack_runtime(runtime, part / "runtime")
        with tempfile.TemporaryDirectory(dir=part.parent, prefix=f".{site.name}.") as halved:
            if graphs is None:
                write_graphs(sam, Path(halved))
            for path in Path(halved if graphs is None else graphs).glob("*.onnx"):
                _halve_weights(path, Path(halved) / path.name)
            (Path(halved) / f"{SINGLE_MASK}.onnx").unlink(missing_ok=True)  # which the page does not load
            report = export(sam, part / "model", images, precision="fp16", thresholds=thresholds, graphs=Path(halved))
        _write_index(part)
        os.replace(part, site)
    except GroupMixSamError:
        raise
    except OSError as e:
        raise SaveError(f"{site} cannot be written ({e}): check its rights and the space that is left.") from e
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return report


def _unpack_runtime(package: Path | None, folder: Path) -> None:
    """Write the runtime's files to a new folder, from the npm package's file, which is checked."""
    if package is None:
        with tempfile.TemporaryDirectory() as fetched:
            _unpack_runtime(_npm_pack(Path(fetched)), folder)
        return
    try:
        data = package.read_bytes()
    except OSError as e:
        raise InvalidInputError(f"{package} cannot be read ({e}): give the file that `npm pack {PACKAGE}` writes.") from e
    found = f"sha512-{base64.b64encode(hashlib.sha512(data).digest()).decode()}"
    if found != INTEGRITY:
        raise InvalidInputError(
            f"{package} has the integrity {found}, not {INTEGRITY}: give the file that `npm pack {PACKAGE}` writes."
        )
    folder.mkdir()
    with tarfile.open(package) as tar:
        for name, target in RUNTIME_FILES.items():
            file = tar.extractfile(f"package/dist/{name}")
            assert file is not None
            (folder / target).write_bytes(file.read())


def _npm_pack(folder: Path) -> Path:
    """Return the package's file, which npm fetches to a folder from the registry that it is configured for."""
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeUnavailableError(
            f"npm is not installed: install Node.js, or run `npm pack {PACKAGE}` elsewhere and give its file."
        )
    done = subprocess.run([npm, "pack", PACKAGE], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    files = list(folder.glob("*.tgz"))
    if done.returncode or len(files) != 1:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
        raise RuntimeUnavailableError(
            f"`npm pack {PACKAGE}` failed ({why}): check npm's registry, or run it elsewhere and give its file."
        )
    return files[0]


def _halve_weights(source: Path, target: Path) -> None:
    """Write an ONNX file anew with its large weights in fp16; loading casts them, and what is computed stays in fp32."""
    import onnx  # `write_graphs` says it if there is none

    model = onnx.load(source)
    casts = []
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.size >= HALF_FROM:
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float16), f"{name}.half"))
            cast = onnx.helper.make_node("Cast", [tensor.name], [name], f"{name}.cast", to=onnx.TensorProto.FLOAT)
            casts.append(cast)
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target)


def _write_index(part: Path) -> None:
    """Write `site.json`, what the page loads and how it tries a GPU, and a version into what keeps the files offline."""
    files = sorted(path for path in part.rglob("*") if path.is_file())
    names = {path.relative_to(part).as_posix(): path for path in files}
    index = {"files": {name: path.stat().st_size for name, path in names.items()}, "probe": _probe(part / "model")}
    (part / "site.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    version = hashlib.sha256("".join(f"{name} {sha256(path)}\n" for name, path in names.items()).encode()).hexdigest()[:16]
    script = part / "offline.js"
    before = script.read_text(encoding="utf-8")
    after = before.replace('VERSION = "development"', f'VERSION = "{version}"')
    assert after != before
    script.write_text(after, encoding="utf-8")


def _probe(folder: Path) -> dict[str, list[float]]:
    """Return what the model makes of a pattern and a point, four scores and the means of four masks' logits."""
    model = Predictor.from_pretrained(folder).model
    side = model.image_size
    pattern = torch.arange(3 * side * side) % 97 / 48.5 - 1
    (features,) = model.encoder(pattern.reshape(1, 3, side, side))
    points, labels = torch.tensor([[[side / 2, side / 2], [0.0, 0.0]]]), torch.tensor([[1.0, -1.0]])
    logits, scores = model.decoder(*model.image(features), points, labels)
    return {"scores": scores[0].tolist(), "logits": logits[0].mean(dim=(1, 2)).tolist()}
