import numpy as np
import pytest
import torch
from PIL import Image

from groupmix_sam.distill.plots import DECODER_CURVES, TILE, draw_features, plot_log, stack_images


def tile(row, i):
    """Return the i-th image of a row, without its label."""
    left = i * (TILE + 4)
    return np.asarray(row)[16:, left : left + TILE].astype(int)


def test_equal_features_are_drawn_equal_and_others_not():
    torch.manual_seed(0)
    image, features = torch.zeros(3, 64, 64), torch.randn(4, 4, 256)
    row = draw_features(image, features, features, "step 1")
    assert row.size == (9 * (TILE + 4), TILE + 16)
    for i in (1, 3, 5, 7):
        assert np.array_equal(tile(row, i), tile(row, i + 1))
    other = draw_features(image, features, torch.randn(4, 4, 256), "step 1")
    for i in (1, 3, 5, 7):
        assert np.array_equal(tile(other, i), tile(row, i))
        assert not np.array_equal(tile(other, i + 1), tile(row, i + 1))


def test_a_channel_by_hand():
    """Channel 0 rises from left to right: from black to white."""
    features = torch.zeros(4, 4, 256)
    features[..., 0] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    drawn = tile(draw_features(torch.zeros(3, 64, 64), features, features, ""), 3)[:, :, 0]
    columns = drawn[:, TILE // 8 :: TILE // 4]
    assert (columns == columns[0]).all()
    assert columns[0].tolist() == pytest.approx([0, 85, 170, 255], abs=1)


def test_stack(tmp_path):
    paths = []
    for i, size in enumerate(((4, 2), (6, 3))):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", size, (100 * (i + 1), 0, 0)).save(paths[-1])
    stack_images(paths, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        out = np.asarray(image)
    assert out.shape == (5, 6, 3)
    assert out[0, 0].tolist() == [100, 0, 0]
    assert out[4, 5].tolist() == [200, 0, 0]
    assert out[0, 5].tolist() == [255, 255, 255]


def test_plot(tmp_path):
    """The curve is drawn in its colour, and rows without a value are left out."""
    pytest.importorskip("matplotlib")
    (tmp_path / "log.csv").write_text("step,features,r2\n1,1.0,\n2,0.5,0.1\n3,,0.4\n")
    plot_log(tmp_path / "log.csv", tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (pixels == color).all(1).sum() > 50
    (tmp_path / "log.csv").write_text("step,masks,box_iou\n1,1.0,\n2,0.5,0.1\n3,,0.4\n")
    plot_log(tmp_path / "log.csv", tmp_path / "masks.png", DECODER_CURVES)
    assert (tmp_path / "masks.png").stat().st_size > 5000
