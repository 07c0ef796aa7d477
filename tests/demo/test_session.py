from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from segment_anything import SamPredictor

from groupmix_sam.demo import Answer, Demo, Session
from groupmix_sam.demo.session import REFERENCE, load_named
from groupmix_sam.errors import ImageReadError, InvalidInputError, NoImageError, UnknownNameError
from groupmix_sam.inference import Predictor
from groupmix_sam.inference.model import torch_model
from groupmix_sam.prompts import Prompt
from groupmix_sam.visualize import draw_masks
from groupmix_sam.weights import save_weights

from ..inference.conftest import draw

COFFEE = Path(__file__).parents[2] / "examples" / "coffee.jpg"


class Stub:
    """In a Predictor's place: three masks that are given, and lists, shared with its copies, of what it was asked."""

    def __init__(self, masks, scores):
        self.masks, self.scores = masks, np.array(scores, dtype=np.float32)
        self.embedded, self.asked = [], []

    def set_image(self, image):
        self.embedded.append(image)

    def predict(self, point_coords, point_labels, box):
        self.asked.append((point_coords, point_labels, box))
        return self.masks, self.scores, None


def rows(*numbers):
    """Return a 4 x 4 mask of whole rows."""
    mask = np.zeros((4, 4), dtype=bool)
    mask[list(numbers)] = True
    return mask


@pytest.fixture
def stubs():
    ours = Stub(np.stack([rows(0), rows(0, 1), rows(0, 1, 2)]), [0.5, 0.9, 0.7])
    other = Stub(np.stack([rows(3), rows(1, 2), rows(1)]), [0.9, 0.2, 0.3])
    return ours, other


@pytest.fixture
def demo(stubs):
    return Demo({"ours": lambda: stubs[0], "again": lambda: stubs[0]}, lambda: stubs[1])


@pytest.fixture
def small():
    return Session.of(np.full((4, 4, 3), 100, dtype=np.uint8))


def at(session, x, y, kind="foreground"):
    """Click on the middle of an image's pixel."""
    height, width = session.image.shape[:2]
    shown_height, shown_width = session.shown.shape[:2]
    return session.click((x + 0.5) * shown_width / width - 0.5, (y + 0.5) * shown_height / height - 0.5, kind)


def test_points_and_boxes_are_what_was_clicked(small):
    session = at(at(at(small, 1, 2), 3, 0, "background"), 3, 3, "corner")
    assert (session.corner.x, session.corner.y) == (3, 3)
    assert session.prompt() == Prompt([[1, 2], [3, 0]], [1, 0])
    session = at(session, 0, 1, "corner")
    assert session.corner is None
    assert session.prompt().box == [0, 1, 3, 3]


def test_a_third_corner_opens_another_box_and_undo_brings_the_first_back(small):
    boxed = at(at(small, 0, 0, "corner"), 2, 2, "corner")
    opened = at(boxed, 3, 3, "corner")
    assert opened.prompt() is None
    assert at(opened, 1, 1, "corner").prompt().box == [1, 1, 3, 3]
    assert opened.undo().prompt().box == [0, 0, 2, 2]
    assert opened.clear().clicks == ()
    assert small.undo().clicks == ()


def test_a_click_on_the_border_stays_in_the_image(small):
    assert (small.click(-1, 2000, "foreground").clicks[0].x, small.click(-1, 2000, "foreground").clicks[0].y) == (0, 3)


@pytest.mark.parametrize("size", [(1, 1), (20000, 50), (3000, 2000), (60, 40)])
def test_images_of_every_size_are_shown_alike(size):
    session = Session.of(np.zeros((size[1], size[0], 3), dtype=np.uint8))
    assert max(session.shown.shape[:2]) == 1024
    click = at(session, size[0] // 2, size[1] // 2).clicks[0]
    assert (click.x, click.y) == pytest.approx((size[0] // 2, size[1] // 2), abs=1e-6)


def test_the_best_mask_is_chosen_and_another_may_be(demo, stubs, small):
    session = demo.predict(at(small, 1, 2), "ours")
    coords, labels, box = stubs[0].asked[0]
    assert (coords.tolist(), labels.tolist(), box) == ([[1, 2]], [1], None)
    assert np.array_equal(session.mask(), rows(0, 1))
    assert np.array_equal(session.choose(2).mask(), rows(0, 1, 2))
    assert np.array_equal(demo.predict(session.choose(2), "ours", REFERENCE).mask(), rows(0, 1, 2))
    assert session.compared_iou(REFERENCE) is None
    assert session.clear().mask() is None


def test_the_best_is_compared_with_the_best_and_another_with_that_of_the_same_number(demo, stubs, small):
    stubs[1].scores[:] = [0.2, 0.9, 0.3]
    session = demo.predict(at(small, 1, 2), "ours", REFERENCE)
    assert session.compared_iou(REFERENCE) == pytest.approx(1 / 3)  # rows 0 and 1, rows 1 and 2
    assert session.choose(0).compared_iou(REFERENCE) == 0
    assert session.choose(2).compared_iou(REFERENCE) == pytest.approx(1 / 3)  # rows 0, 1 and 2, row 1
    assert np.array_equal(session.mask(REFERENCE), rows(1, 2))
    stubs[1].scores[:] = [0.2, 0.1, 0.3]
    session = demo.predict(at(small, 1, 2), "ours", REFERENCE)
    assert np.array_equal(session.mask(REFERENCE), rows(1))
    assert session.compared_iou(REFERENCE) == pytest.approx(1 / 2)  # rows 0 and 1, row 1


def test_a_model_may_join(demo, stubs, small):
    demo.add("late", lambda: stubs[1])
    assert demo.models == ("ours", "again", "late")
    assert demo.compared == ("ours", "again", REFERENCE, "late")
    session = demo.predict(at(small, 1, 2), "late", "ours")
    assert np.array_equal(session.mask(), rows(3))
    assert np.array_equal(session.mask("ours"), rows(0, 1))


def test_a_model_sees_a_image_once(demo, stubs, small):
    session = demo.predict(small, "ours")
    for x in range(3):
        session = demo.predict(at(session, x, 0), "ours", REFERENCE)
    assert [len(stub.embedded) for stub in stubs] == [1, 1]
    session = demo.predict(session, "again")
    assert set(session.embeddings) == {"ours", "again", REFERENCE}
    assert demo.predict(Session(), "ours", REFERENCE).embeddings == {}
    assert set(demo.predict(small, "ours", "ours").embeddings) == {"ours"}
    with pytest.raises(UnknownNameError, match="did you mean again"):
        demo.predict(small, "ours", "agian")


def test_what_is_drawn_is_the_mask_and_the_prompt_at_both_sizes(small):
    mask = rows(0, 1)
    session = at(small, 1, 2)
    session = Session(small.image, small.shown, session.clicks, answers={"m": Answer(mask[None], np.ones(1), 0)}, model="m")
    expected = draw_masks(small.image, [mask], points=np.array([[1.0, 2]]), labels=np.array([1]))
    assert np.array_equal(np.asarray(session.draw(full=True)), np.asarray(expected))
    large = np.full((1024, 1024, 3), 100, dtype=np.uint8)
    expected = draw_masks(large, [mask.repeat(256, 0).repeat(256, 1)], points=np.array([[383.5, 639.5]]), labels=np.array([1]))
    assert np.array_equal(np.asarray(session.draw()), np.asarray(expected))
    cross = np.asarray(at(small, 1, 2, "corner").draw())
    assert cross[640, 384].tolist() == [255, 255, 255]
    assert cross[700, 700].tolist() == [100, 100, 100]
    assert Session().draw() is None


def test_what_cannot_be_is_refused(demo, small, tmp_path):
    with pytest.raises(NoImageError, match="give it again"):
        Session().click(1, 1, "foreground")
    with pytest.raises(InvalidInputError, match="'foreground', 'background' or 'corner'"):
        small.click(1, 1, "middle")
    with pytest.raises(InvalidInputError, match="no area"):
        at(at(small, 1, 1, "corner"), 1, 1, "corner")
    with pytest.raises(InvalidInputError, match="not finite"):
        small.click(float("nan"), 1, "foreground")
    with pytest.raises(UnknownNameError, match="did you mean ours"):
        demo.predict(small, "our")
    with pytest.raises(ImageReadError, match=r"^none\.jpg cannot be read \(No such file or directory\): check the path"):
        demo.open(tmp_path / "none.jpg")
    (tmp_path / "cut.jpg").write_bytes(COFFEE.read_bytes()[:9000])
    with pytest.raises(ImageReadError, match=r"^cut\.jpg cannot be read as an image"):
        demo.open(tmp_path / "cut.jpg")
    Image.new("L", (6000, 5000)).save(tmp_path / "huge.png")
    with pytest.raises(ImageReadError, match=r"^huge\.png has 6000 x 5000 pixels, more than 25 million"):
        demo.open(tmp_path / "huge.png")


def test_visitors_at_once_get_what_sam_predictor_says_of_their_own_image(sam):
    images = [draw(), draw()[:, ::-1].copy(), draw(60, 80), draw(120, 90)]
    demo = Demo({"tiny": partial(Predictor, torch_model(sam))})

    def visit(image):
        session, scores = Session.of(image), []
        for x in range(10, 60, 10):
            session = demo.predict(at(session.clear(), x, 30), "tiny")
            scores.append(session.answer.scores)
        return scores, session.answer.masks

    with ThreadPoolExecutor(4) as pool:
        visits = list(pool.map(visit, images))
    predictor = SamPredictor(sam)
    for image, (scores, masks) in zip(images, visits, strict=True):
        predictor.set_image(image)
        for x, found in zip(range(10, 60, 10), scores, strict=True):
            expected, truth, _ = predictor.predict(np.array([[x, 30.0]]), np.array([1]))
            assert found == pytest.approx(truth, abs=1e-3)
        assert (masks == expected).mean() > 0.98


def test_weights_are_named_by_their_source(sam, tmp_path):
    path = str(save_weights(sam, tmp_path / "tiny.safetensors"))
    name, predictor = load_named(path)
    assert name == f"{path}: PyTorch fp32, 256 px"
    assert predictor.model_hash == Predictor(sam).model_hash


def test_default_is_never_a_folder(tmp_path, monkeypatch):
    (tmp_path / "default").mkdir()
    monkeypatch.chdir(tmp_path)
    name, _ = load_named("default")
    assert name == "default: PyTorch fp32, 1024 px"
