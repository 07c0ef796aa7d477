from dataclasses import replace

import numpy as np
import pytest

from groupmix_sam.errors import InvalidInputError
from groupmix_sam.evaluate import Result, compare, compare_text, summarize, summary_text

AREAS = (100.0, 1024.0, 5000.0, 20000.0)


def result(ious, box=0.3, predicted=0.9, name="a"):
    """A result of one box prompt a mask; `ious` of each image, areas from small to large again and again."""
    rows = [
        {"image": f"{p}.png", "id": i, "area": AREAS[i % 4], "prompt": "box", "iou": value}
        | {"boundary_iou": value / 2, "predicted_iou": predicted, "box_baseline_iou": box}
        for p, values in enumerate(ious)
        for i, value in enumerate(values)
    ]
    protocol = {"name": "sam", "prompts": {"box": "single"}}
    model = {"name": name, "sha256": "0123456789abcdef", "image_size": 1024}
    return Result("labelled", protocol, model, {"sha256": "x"}, {}, rows)


def random_ious(seed, images=12, low=0.2):
    rng = np.random.default_rng(seed)
    return [rng.uniform(low, 1, rng.integers(1, 9)).tolist() for _ in range(images)]


def test_means_by_hand():
    """Over masks, not over images; 1024 pixels are small and medium, as COCO has it."""
    lines = {line.size: line for line in summarize(result([[0.2, 0.4, 0.6, 0.8], [1.0]]))}
    assert lines["all"].iou.value == pytest.approx(0.6)
    assert lines["all"].boundary_iou.value == pytest.approx(0.3)
    assert lines["all"].box_baseline.value == pytest.approx(0.3)
    assert lines["all"].iou_error.value == pytest.approx((0.7 + 0.5 + 0.3 + 0.1 + 0.1) / 5)
    assert lines["all"].under_half.value == pytest.approx(2 / 5)
    assert lines["all"].share is None
    assert {size: (line.count, pytest.approx(line.iou.value)) for size, line in lines.items()} == {
        "all": (5, 0.6),
        "S": (3, (0.2 + 1.0 + 0.4) / 3),
        "M": (2, 0.5),
        "L": (1, 0.8),
    }


def test_interval_is_a_bootstrap_over_images():
    """Against another one, image by image, with another seed: the ends agree to the resampling's own noise."""
    ious = random_ious(0)
    figure = summarize(result(ious))[0].iou
    rng = np.random.default_rng(99)
    draws = [np.mean(np.concatenate([ious[i] for i in rng.integers(12, size=12)])) for _ in range(4000)]
    assert (figure.low, figure.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.01)
    assert figure.low < figure.value < figure.high


def test_one_image_has_no_spread():
    figure = summarize(result([[0.2, 0.6]]))[0].iou
    assert (figure.value, figure.low, figure.high) == pytest.approx((0.4, 0.4, 0.4))


def test_share_of_the_gain_by_hand():
    """From 0.3 the reference comes to 0.7, the model to 0.6: three quarters of the way, in each image alike."""
    line = summarize(result([[0.6, 0.6], [0.6]]), result([[0.7, 0.7], [0.7]], name="b"))[0]
    assert (line.share.value, line.share.low, line.share.high) == pytest.approx((0.75, 0.75, 0.75))
    assert summarize(result([[0.6]]), result([[0.2]]))[0].share is None, "the reference gains nothing over the box"


def test_comparison_is_paired():
    """B is A less 0.1 everywhere: however the images differ, the difference has no spread."""
    a = random_ious(1, low=0.4)
    b = [[value - 0.1 for value in values] for values in a]
    (c,) = compare(result(a), result(b))
    assert (c.difference.value, c.difference.low, c.difference.high) == pytest.approx((-0.1, -0.1, -0.1))
    mean = np.mean(np.concatenate(a))
    assert c.ratio.value == pytest.approx((mean - 0.1) / mean)
    assert c.share.value == pytest.approx((mean - 0.4) / (mean - 0.3))


def test_worst_and_best_images():
    a, b = result([[0.5, 0.5], [0.5], [0.5]]), result([[0.5, 0.7], [0.2], [0.9]])
    (c,) = compare(a, b)
    assert c.images == [("1.png", pytest.approx(-0.3)), ("0.png", pytest.approx(0.1)), ("2.png", pytest.approx(0.4))]
    text = compare_text(a, b, images=1)
    assert "box, B's worst: 1.png -0.300\nbox, B's best: 2.png +0.400" in text


def test_tables_show_the_box_baseline():
    text = summary_text(result(random_ious(2)))
    assert "box baseline" in text
    assert "0.300 (0.300 to 0.300)" in text
    assert "share of b (01234567)'s gain" in summary_text(result([[0.5]]), result([[0.6]], name="b"))
    assert "box baseline" in compare_text(result([[0.5]]), result([[0.6]]))


def test_rows_in_another_order_are_paired_all_the_same():
    a, b = result([[0.5, 0.8], [0.4]]), result([[0.6, 0.6], [0.6]])
    shuffled = replace(a, rows=a.rows[::-1])
    assert compare(shuffled, b)[0].images == compare(a, b)[0].images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "reference"}, "differ in their kind"),
        ({"protocol": {"name": "nanosam", "prompts": {"box": "best-of-4"}}}, "differ in their protocol"),
        ({"data": {"sha256": "y"}}, "different data, their sha256 differ"),
        ({"data": {"sha256": "x", "images_sha256": "y"}}, "different data, their images_sha256 differ"),
        ({"data": {"sha256": "x", "points_per_side": 3}}, "different data, their points_per_side differ"),
        ({"rows": []}, "has no mask for"),
    ],
)
def test_what_cannot_be_compared(change, message):
    a = result([[0.5]])
    with pytest.raises(InvalidInputError, match=message):
        compare(replace(a, **change), a)
