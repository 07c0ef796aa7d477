import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupmix_sam.errors import InvalidInputError
from groupmix_sam.prompts import EVERY, Prompt, read_prompts, stack_prompts


def test_prompts_from_json(tmp_path):
    entries = [
        {"image": "a.jpg", "points": [[1, 2], [3, 4]], "labels": [1, 0]},
        {"image": "b.jpg", "box": [1, 2, 3, 4]},
        {"image": "a.jpg", "x": 5, "y": 6},
    ]
    (tmp_path / "p.json").write_text(json.dumps(entries))
    assert read_prompts(tmp_path / "p.json") == {
        "a.jpg": [Prompt([[1.0, 2.0], [3.0, 4.0]], [1, 0]), Prompt([[5.0, 6.0]], [1])],
        "b.jpg": [Prompt(box=[1.0, 2.0, 3.0, 4.0])],
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "image,x,y\n", "has no prompts"),
        ("p.csv", "file,x,y\na.jpg,1,2\n", "that are unknown, 'file'"),
        ("p.csv", "image,x,y,label\na.jpg,1,2,0\n", "unknown, 'label': use image, x, y, left"),
        ("p.csv", "x,y\n1,2\n", "prompt 1 of"),
        ("p.csv", "image,x,y\na.jpg,1,2\na.jpg,1,z\n", "prompt 2 of"),
        ("p.csv", "image,x,y\n,1,2\n", "prompt 1 of"),
        ("p.csv", "image,left,top,right,bottom\na.jpg,1,2,3,\n", "prompt 1 of"),
        ("p.csv", "image,x,y\na.jpg,170,16,420,312\n", "prompt 1 of"),
        ("p.csv", "image,x,y,left,top,right,bottom\na.jpg,1,2,,3,4,5\n", "prompt 1 of"),
        ("p.json", "{", "cannot be read"),
        ("p.json", '[{"image": "a.jpg"}]', "prompt 1 of"),
        ("p.json", '[{"image": "a.jpg", "points": [[1, 2]], "labels": []}]', "prompt 1 of"),
        ("p.json", '[{"image": "a.jpg", "box": [1, 2, 3]}]', "prompt 1 of"),
        ("p.json", '[{"image": "a.jpg", "x": 1, "y": 2, "label": 0}]', "prompt 1 of .* unknown, 'label'"),
        ("p.json", '[{"image": "a.jpg", "box": [1, 2, 3, 4], "point_coords": [[1, 2]]}]', "unknown, 'point_coords'"),
        ("p.json", '{"image": "a.jpg", "box": [1, 2, 3, 4]}', "unknown, 'image', 'box': use boxes, points"),
        ("p.json", '{"labels": [[1]]}', 'neither "boxes" nor "points"'),
        ("p.json", '{"boxes": [[1, 2, 3, 4]], "categories": ["a", "b"]}', "lists of different lengths"),
        ("p.json", '{"boxes": 3}', "lists of different lengths"),
    ],
)
def test_bad_prompts(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        read_prompts(tmp_path / name)


def test_prompts_for_every_image(tmp_path):
    content = {"boxes": [[1, 2, 3, 4], [5, 6, 7, 8]], "points": [[[1, 2]], [[6, 7], [6, 8]]], "labels": [[1], [1, 0]]}
    (tmp_path / "p.json").write_text(json.dumps(content | {"categories": ["nut", None]}))
    assert read_prompts(tmp_path / "p.json") == {
        EVERY: [
            Prompt([[1.0, 2.0]], [1], [1.0, 2.0, 3.0, 4.0], "nut"),
            Prompt([[6.0, 7.0], [6.0, 8.0]], [1, 0], [5.0, 6.0, 7.0, 8.0]),
        ]
    }


def test_categories_of_a_csv(tmp_path):
    (tmp_path / "p.csv").write_text("image,x,y,category\na.jpg,1,2,hand\na.jpg,3,4,\n")
    assert read_prompts(tmp_path / "p.csv") == {"a.jpg": [Prompt([[1.0, 2.0]], [1], None, "hand"), Prompt([[3.0, 4.0]], [1])]}


@pytest.mark.parametrize("name", ["p.csv", "p.json"])
def test_files_from_windows(tmp_path, name):
    """A byte-order mark, CRLF and back slashes."""
    text = {"p.csv": "image,x,y\r\nsub\\a.jpg,1,2\r\n", "p.json": '[{"image": "sub\\\\a.jpg",\r\n"x": 1, "y": 2}]'}[name]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_prompts(tmp_path / name) == {"sub/a.jpg": [Prompt([[1.0, 2.0]])]}
    (tmp_path / name).write_bytes(text.replace("a.jpg", "ä.jpg").encode("cp1252"))
    with pytest.raises(InvalidInputError, match=r"cannot be read .* in UTF-8"):
        read_prompts(tmp_path / name)


def test_kinds():
    point, box = [[1.0, 2.0]], [1.0, 2.0, 3.0, 4.0]
    assert [Prompt(point).kind, Prompt(point * 2).kind, Prompt(box=box).kind, Prompt(point, box=box).kind] == [
        "point",
        "points",
        "box",
        "box",
    ]
    assert [Prompt(point).labels, Prompt(point * 2, [1, 0]).labels, Prompt(box=box).labels] == [[1], [1, 0], []]


def test_stacked_by_hand():
    coords, labels, boxes = stack_prompts(
        [Prompt([[3.0, 4.0]], [0], [1.0, 2.0, 9.0, 9.0]), Prompt([[5.0, 6.0], [7.0, 8.0]], box=[1.0, 2.0, 9.0, 8.0])]
    )
    assert coords.tolist() == [[[3, 4], [0, 0]], [[5, 6], [7, 8]]]
    assert labels.tolist() == [[0, -1], [1, 1]]
    assert boxes.tolist() == [[1, 2, 9, 9], [1, 2, 9, 8]]
    assert stack_prompts([Prompt(box=[1.0, 2.0, 3.0, 4.0])])[:2] == (None, None)
    assert stack_prompts([Prompt([[1.0, 2.0]])])[2] is None


def test_not_stacked():
    with pytest.raises(InvalidInputError, match="1 of 2 prompts have a box: give a box to all of them or to none"):
        stack_prompts([Prompt([[1.0, 2.0]]), Prompt(box=[1.0, 2.0, 3.0, 4.0])])
    with pytest.raises(InvalidInputError, match="nothing says what to segment"):
        stack_prompts([])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(["image", "box", "boxes", "x"]), values),
    max_leaves=8,
)


@given(json_values)
def test_any_json_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("prompts") / "p.json"
    path.write_text(json.dumps(content))
    try:
        prompts = read_prompts(path)
    except InvalidInputError:
        return
    assert all(isinstance(prompt, Prompt) for group in prompts.values() for prompt in group)
