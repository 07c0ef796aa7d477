"""A tiny Sam and a drawn image, for every test of deployment."""

import numpy as np
import pytest
import torch

from groupmix_sam import build_sam_groupmix


def draw(height=90, width=120):
    """Colour gradients with a bright rectangle."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([2 * x, 2 * y, 255 - x - y], axis=-1).astype(np.uint8)
    image[height // 4 : height // 2, width // 4 : width // 2] = 250
    return image


@pytest.fixture(scope="session")
def sam():
    """Untrained; its features are scaled up, so that the masks depend on the image and the prompt."""
    torch.manual_seed(0)
    sam = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=256)
    sam.image_encoder.neck.proj.weight.data *= 30
    return sam.requires_grad_(False)
