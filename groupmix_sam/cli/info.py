"""`groupmix-sam info`."""

import json
import platform
from importlib.metadata import PackageNotFoundError, metadata
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__

PACKAGES = ("torch", "torchvision", "timm", "segment-anything", "segment-anything-py", "safetensors", "huggingface_hub")


def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, devices, runtimes, extras and the weights that ship with the package.

    groupmix-sam info --json
    """
    found = gather()
    typer.echo(json.dumps(found, indent=2) if as_json else _text(found))


def gather() -> dict[str, Any]:
    """Return versions, devices, runtimes, extras and weights, as JSON has them; what is not there is None."""
    return {
        "groupmix-sam": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: _version(package) for package in PACKAGES},
        "devices": _devices(),
        "runtimes": _runtimes(),
        "extras": _extras(),
        "weights": _weights(),
    }


def _devices() -> dict[str, Any]:
    import torch

    from ..devices import find_threads

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cuda": gpus, "mps": torch.backends.mps.is_available(), "threads": find_threads() or torch.get_num_threads()}


def _runtimes() -> dict[str, Any]:
    """Return each runtime's version and what it runs on; `import_tensorrt` looks for a GPU first."""
    from ..errors import MissingExtraError, RuntimeUnavailableError, import_extra
    from ..inference.backends.openvino import openvino_core
    from ..inference.backends.tensorrt import import_tensorrt

    found: dict[str, Any] = dict.fromkeys(("onnxruntime", "openvino", "tensorrt"))
    try:
        ort = import_extra("onnxruntime", "onnx")
        found["onnxruntime"] = {"version": ort.__version__, "providers": ort.get_available_providers()}
    except MissingExtraError:
        pass
    try:
        ov = import_extra("openvino", "openvino")
        found["openvino"] = {"version": ov.__version__, "devices": openvino_core().available_devices}
    except MissingExtraError:
        pass
    try:
        found["tensorrt"] = {"version": import_tensorrt().__version__}
    except (MissingExtraError, RuntimeUnavailableError) as e:
        found["tensorrt"] = {"version": None, "why": str(e)}
    return found


def _extras() -> dict[str, list[str]]:
    """Return the extras, as this package's metadata have them, and which of their packages are not installed."""
    from packaging.requirements import Requirement

    try:
        about = metadata("groupmix-sam")
    except PackageNotFoundError:  # run out of its sources
        return {}
    requirements = [Requirement(text) for text in about.get_all("Requires-Dist") or []]

    def missing(extra: str) -> set[str]:
        absent: set[str] = set()
        for needed in requirements:
            if needed.marker is None or not needed.marker.evaluate({"extra": extra}) or needed.marker.evaluate({"extra": ""}):
                continue
            if needed.name == about["Name"]:
                absent.update(*map(missing, needed.extras))
            elif _version(needed.name) is None:
                absent.add(needed.name)
        return absent

    return {extra: sorted(missing(extra)) for extra in about.get_all("Provides-Extra") or []}


def _weights() -> dict[str, Any]:
    from safetensors import safe_open

    from ..encoders.config import pretrained_file
    from ..files import sha256
    from ..sam import ENCODERS
    from ..weights import PRETRAINED

    found: dict[str, Any] = {}
    for name in ENCODERS:
        path = Path(pretrained_file(name))
        found[name] = None
        if path.is_file():
            digest = sha256(path)
            whole = digest == PRETRAINED.get(name)
            training = None
            if whole:
                with safe_open(path, framework="numpy") as file:
                    training = json.loads((file.metadata() or {}).get("training", "null"))
            found[name] = {"path": str(path), "sha256": digest, "whole": whole, "training": training}
    return found


def _text(found: dict[str, Any]) -> str:
    lines = [f"groupmix-sam {found['groupmix-sam']}, Python {found['python']}, {found['platform']}", "", "Packages"]
    lines += [f"  {name} {version or 'not installed'}" for name, version in found["packages"].items()]
    devices = found["devices"]
    lines += ["", "Devices", f"  CUDA: {', '.join(devices['cuda']) or 'none'}"]
    lines += [f"  MPS: {'available' if devices['mps'] else 'none'}", f"  CPU: {devices['threads']} threads"]
    lines += ["", "Runtimes"]
    for name, runtime in found["runtimes"].items():
        if runtime is None:
            lines.append(f"  {name}: not installed")
        elif runtime["version"] is None:
            lines.append(f"  {name}: {runtime['why']}")
        else:
            where = ", ".join(runtime.get("providers") or runtime.get("devices") or [])
            lines.append(f"  {name} {runtime['version']}{': ' if where else ''}{where}")
    lines += ["", "Extras"] if found["extras"] else []
    for extra, absent in found["extras"].items():
        lines.append(f"  {extra}: {'lacks ' + ', '.join(absent) if absent else 'installed'}")
    lines += ["", "Weights"]
    for name, weights in found["weights"].items():
        if weights is None:
            lines.append(f"  {name}: no weights here")
            continue
        state = "weights ship" if weights["whole"] else "damaged, reinstall groupmix-sam"
        runs = (weights["training"] or {}).get("runs", [])
        origin = f", {len(runs)} runs of training from {runs[0].get('teacher', 'an unnamed teacher')}" if runs else ""
        lines.append(f"  {name}: {state}, sha256 {weights['sha256'][:12]}{origin}")
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return None
