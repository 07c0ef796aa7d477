"""A predictor in worker processes that are spawned, as docs/how/devices.md shows; forked ones hang."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch

from groupmix_sam.inference import Predictor

from .conftest import draw

BOX = np.array([20, 10, 100, 80])


def start(sent):
    global predictor
    predictor = sent


def work(image):
    torch.set_num_threads(2)
    predictor.set_image(image)
    return predictor.predict(box=BOX)[2]


def test_spawned_workers_give_the_same_masks(sam):
    """Where PyTorch has run two threads, whose pool a forked worker would wait for."""
    torch.set_num_threads(2)
    predictor = Predictor(sam)
    images = [draw(), draw()[::-1].copy()]
    expected = []
    for image in images:
        predictor.set_image(image)
        expected.append(predictor.predict(box=BOX)[2])
    with ProcessPoolExecutor(1, get_context("spawn"), start, [predictor]) as workers:
        for got, logits in zip(workers.map(work, images, timeout=300), expected, strict=True):
            np.testing.assert_allclose(got, logits, atol=1e-3)
