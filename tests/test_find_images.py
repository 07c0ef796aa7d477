import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from groupmix_sam.errors import ImageReadError, InvalidInputError
from groupmix_sam.images import ImageFile, evenly_spaced, name_images


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "one" / "sub").mkdir(parents=True)
    for name in ("one/b.png", "one/a.jpg", "one/sub/a.jpg"):
        Image.new("RGB", (3, 2)).save(tmp_path / name)
    (tmp_path / "one" / "notes.md").touch()
    with tarfile.open(tmp_path / "one" / "shard.tar", "w") as tar:
        tar.add(tmp_path / "one" / "b.png", "in/c.png")
    (tmp_path / "list.txt").write_text("one/b.png\none/sub/a.jpg\n")
    return tmp_path


@pytest.mark.parametrize(
    ("there", "count", "first", "last"),
    [(79, 40, [0, 1, 3, 5], 77), (10, 3, [0, 3, 6], 6), (4, 9, [0, 1, 2, 3], 3), (4, 4, [0, 1, 2, 3], 3)],
)
def test_evenly_spaced(there, count, first, last):
    """By hand; of 79 images 40 reach the end, so that what is sorted last is seen too."""
    found = [int(image.path.name) for image in evenly_spaced([ImageFile(Path(str(i))) for i in range(there)], count)]
    assert (found[:4], found[-1], len(found)) == (first, last, min(there, count))


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["one"], {"a.jpg": "one/a.jpg", "b.png": "one/b.png", "shard.tar/in/c.png": "in/c.png", "sub/a.jpg": "one/sub/a.jpg"}),
        (["one/b.png"], {"b.png": "one/b.png"}),
        (["one/b.png", "one/b.png"], {"b.png": "one/b.png"}),
        (["one/*.[jp][pn]g"], {"a.jpg": "one/a.jpg", "b.png": "one/b.png"}),
        (["one/**/b.*"], {"b.png": "one/b.png"}),
        (["list.txt"], {"b.png": "one/b.png", "a.jpg": "one/sub/a.jpg"}),
        (["one/shard.tar"], {"in/c.png": "in/c.png"}),
        (["no.png"], {"no.png": "no.png"}),
    ],
)
def test_names(folder, monkeypatch, sources, expected):
    monkeypatch.chdir(folder)
    named = name_images(sources)
    assert {name: image.name or image.path.as_posix() for name, image in named.items()} == expected


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["one/*.webp"], "no file is like"),
        (["one", "one/sub"], r"are both named a\.jpg"),
        (["empty"], "has no image in it"),
        (["no.txt"], "there is no folder"),
    ],
)
def test_names_refused(folder, monkeypatch, sources, message):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    with pytest.raises(InvalidInputError, match=message):
        name_images(sources)


def test_a_name_with_brackets_is_no_pattern_where_it_is_a_file(folder):
    (folder / "a[1].png").write_bytes((folder / "one" / "b.png").read_bytes())
    assert list(name_images([folder / "a[1].png"])) == ["a[1].png"]


@pytest.mark.parametrize("name", ["../../x.png", "/x.png", "a/../../../x.png", "..\\..\\x.png", "C:\\x.png", "C:x.png"])
def test_a_tar_leads_nowhere_else(folder, name):
    """Outputs are named so, and must stay in their folder."""
    with tarfile.open(folder / "evil.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    assert list(name_images([folder / "evil.tar"])) == ["a/x.png" if name.startswith("a") else "x.png"]


def test_one_that_is_not_there(tmp_path):
    with pytest.raises(ImageReadError, match=r"there is no image .*x\.png: check the path"):
        ImageFile(tmp_path / "x.png").decode()
