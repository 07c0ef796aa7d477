"""What all tests share: seeds, and the folder of real weights and pictures that only the developers' machines have."""

from pathlib import Path

import pytest
import torch

import groupmix_sam  # noqa: F401  registers the encoders

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def shared() -> Path:
    if not (SHARED / "weights" / "mobile_sam.safetensors").is_file():
        pytest.skip("needs ../shared, the developers' folder of real weights and photos")
    return SHARED
