"""`groupmix-sam info`."""

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

import typer


def info() -> None:
    """Show versions, devices and the weights that ship with the package."""
    import torch

    from ..encoders.config import pretrained_file
    from ..sam import ENCODERS

    typer.echo(f"groupmix-sam {_version('groupmix-sam')}, Python {platform.python_version()}, {platform.platform()}")
    for package in ("torch", "timm", "segment-anything", "segment-anything-py", "safetensors", "huggingface_hub"):
        typer.echo(f"  {package} {_version(package)}")
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    typer.echo(f"  CUDA device: {cuda}; CPU threads: {torch.get_num_threads()}")
    for name in ENCODERS:
        shipped = "weights ship" if Path(pretrained_file(name)).is_file() else "no weights here"
        typer.echo(f"  {name}: {shipped}")


def _version(package: str) -> str:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return "not installed"
