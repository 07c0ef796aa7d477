"""Small images, a teacher that can be worked out by hand, and what it says of them."""

import csv

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open

from groupmix_sam import build_sam_groupmix
from groupmix_sam.distill import Grid, cache_features, find_images

SIZE = 128
GRID = Grid(SIZE)


class PlainTeacher:
    """Maps that can be worked out by hand: each channel is a fixed mixture of the colours' means in 16 x 16 pixels."""

    def __init__(self, key="plain", channels=(("features", 256), ("hint_in", 160), ("hint_out", 160))):
        self.key = key
        self.image_size = None
        self.channels = dict(channels)
        g = torch.Generator().manual_seed(3)
        self.weights = {n: torch.randn(c, 3, generator=g) for n, c in self.channels.items()}
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        cells = torch.nn.functional.avg_pool2d(x, 16)
        return {name: torch.einsum("oc,bchw->bohw", w, cells) for name, w in self.weights.items()}


def tiny_student():
    torch.manual_seed(0)
    return timm.create_model("gmf_sam_test", img_size=SIZE)


def rows_of(folder):
    return list(csv.DictReader((folder / "log.csv").read_text().splitlines()))


def step_of(folder):
    """Return the step of a run's checkpoint."""
    with safe_open(folder / "checkpoint.safetensors", framework="pt") as f:
        return int(f.metadata()["progress"].strip("[").split(",")[0])


def paint(path, width, height, seed):
    """Draw coarse random blocks of colour."""
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    blocks.resize((width, height), Image.NEAREST).save(path)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    for i in range(6):
        paint(folder / ("below" if i % 2 else ".") / f"{i}.png", 160 + 8 * i, 120, i)
    return folder


@pytest.fixture(scope="session")
def cached(photos, tmp_path_factory):
    files, skipped = cache_features(find_images(photos), PlainTeacher(), tmp_path_factory.mktemp("cache"), GRID)
    assert skipped == []
    return files


@pytest.fixture(scope="session")
def mobile_sam(tmp_path_factory):
    return save_mobile_sam(tmp_path_factory.mktemp("teacher") / "mobile_sam.pt")


def save_mobile_sam(path):
    """Write an untrained MobileSAM under MobileSAM's names, so that this runs without the real one."""
    torch.manual_seed(0)
    sam = build_sam_groupmix(None, encoder="sam_tiny_vit_5m")
    back = {"stages.0.": "layers.0.", "patch_embed.conv1.": "patch_embed.seq.0.", "patch_embed.conv2.": "patch_embed.seq.2."}
    back |= {f"stages.{i}.downsample.": f"layers.{i - 1}.downsample." for i in (1, 2, 3)}
    back |= {f"stages.{i}.": f"layers.{i}." for i in (1, 2, 3)}
    back |= {f"neck.{ours}.": f"neck.{i}." for i, ours in enumerate(("conv1", "norm1", "conv2", "norm2"))}
    state_dict = {}
    for key, value in sam.state_dict().items():
        name = key.removeprefix("image_encoder.")
        if name != key:
            ours = next(o for o in back if name.startswith(o))
            key = "image_encoder." + name.replace(ours, back[ours], 1).replace(".conv.weight", ".c.weight")
        state_dict[key] = value
    torch.save(state_dict, path)
    return path
