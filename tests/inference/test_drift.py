"""The alarm for frames that no longer look like the adaptation set, on features that are made up and on images."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from groupmix_sam import build_sam_groupmix
from groupmix_sam.cli import app
from groupmix_sam.errors import InvalidInputError, WeightsError, WeightsNotFoundError
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.drift import WINDOW, Drift, DriftAlarm, fit_drift
from groupmix_sam.weights import save_weights


def features(seed, kind=0):
    """Return features of 12 x 16 places, which lie around one of two patterns."""
    pattern = torch.randn(256, 12, 16, generator=torch.Generator().manual_seed(1000 + kind))
    return (pattern + 0.3 * torch.randn(256, 12, 16, generator=torch.Generator().manual_seed(seed)))[None]


@pytest.fixture(scope="module")
def drift():
    return fit_drift([features(seed) for seed in range(20)])


def test_the_distance_by_hand():
    """The mean over places of the distance to the nearest place that is kept, a feature's deviation being one."""
    kept = torch.tensor([[0.0, 0.0], [3.0, 3.0]])
    drift = Drift(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 1.0]), kept, 1.0)
    frame = torch.tensor([[[[3.0, 7.0]], [[1.0, 4.0]]]])  # two places: (3, 1) and (7, 4); normalised (1, 0) and (3, 3)
    assert drift.distance(frame) == pytest.approx(0.5 * (1.0 + 0.0) / 2**0.5)


def test_other_images_are_farther(drift):
    same = [drift.distance(features(seed)) for seed in range(100, 120)]
    other = [drift.distance(features(seed, kind=1)) for seed in range(100, 120)]
    assert np.mean(np.array(same) <= drift.threshold) > 0.6
    assert min(other) > 1.5 * drift.threshold
    with pytest.raises(InvalidInputError, match="there are 7 frames: give 8 or more"):
        fit_drift([features(seed) for seed in range(7)])


def test_it_is_kept_beside_its_weights(drift, tmp_path):
    drift.save(tmp_path, "abc")
    again = Drift.load(tmp_path, "abc")
    assert again.threshold == pytest.approx(drift.threshold)
    assert again.distance(features(50)) == pytest.approx(drift.distance(features(50)), rel=1e-3)
    with pytest.raises(WeightsError, match="belongs to other weights"):
        Drift.load(tmp_path, "abd")
    file = tmp_path / "drift.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        Drift.load(tmp_path, "abc")
    with pytest.raises(WeightsNotFoundError, match="groupmix-sam adapt"):
        Drift.load(tmp_path / "none", "abc")


class Frames:
    """A predictor whose embedding is what a test says."""

    image_size = 256

    class model:  # noqa: N801
        embed_stride = 16

    def get_image_embedding(self):
        return np.pad(self.features.numpy(), ((0, 0), (0, 0), (0, 4), (0, 0)))


def test_the_alarm_needs_most_of_the_last_frames(drift):
    """It is turned on by the frame that makes unlike ones the greater part of 15, and off likewise; padding does not count."""
    predictor = Frames()
    alarm, frame = DriftAlarm(drift, predictor), np.zeros((192, 256, 3), np.uint8)
    turned = []
    for number in range(60):
        predictor.features = features(200 + number % 5, kind=int(20 <= number < 40))
        if alarm.update(frame):
            turned.append((number, alarm.is_on))
            assert ("no longer look" in alarm.message()) == alarm.is_on
    assert turned == [(20 + WINDOW // 2, True), (40 + WINDOW // 2, False)]


def test_stream_says_so(tmp_path):
    """`stream --drift`, of a video whose picture changes in the middle."""
    import cv2

    torch.manual_seed(0)
    sam = build_sam_groupmix(None, encoder="gmf_sam_test", image_size=128)
    weights = save_weights(sam, tmp_path / "model.safetensors")
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(2))
    predictor = Predictor(sam)

    def noisy(image):
        return (image.astype(int) + rng.integers(-20, 21, image.shape)).clip(0, 255).astype(np.uint8)

    frames = []
    for _ in range(10):
        predictor.set_image(noisy(first), "BGR")
        frames.append(torch.from_numpy(predictor.get_image_embedding())[..., :6, :])
    fit_drift(frames).save(tmp_path, predictor.model_hash)
    video = cv2.VideoWriter(str(tmp_path / "line.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (128, 96))
    for image in [first] * 4 + [second] * 20:
        video.write(noisy(image))
    video.release()
    args = ["stream", tmp_path / "line.avi", "--point", "60,40", "--checkpoint", weights, "--drift", tmp_path]
    done = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
    assert done.exit_code == 0
    assert "frames no longer look like those of the adaptation" in done.stderr
