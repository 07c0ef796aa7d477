import io
import logging
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from groupmix_sam.errors import ImageReadError, InvalidInputError
from groupmix_sam.images import ImageFile, evenly_spaced, find_images, is_image, name_images


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
        (["one/*.webp"], "no file matches"),
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


def test_linked_folders_are_followed(folder, tmp_path_factory):
    """And one that leads back up is not followed for ever."""
    other = tmp_path_factory.mktemp("other")
    (other / "d.png").write_bytes((folder / "one" / "b.png").read_bytes())
    (folder / "one" / "linked").symlink_to(other)
    (other / "back").symlink_to(folder / "one")
    (folder / "one" / "e.png").symlink_to(other / "d.png")
    names = list(name_images([folder / "one"]))
    assert names == ["a.jpg", "b.png", "e.png", "linked/d.png", "shard.tar/in/c.png", "sub/a.jpg"]


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".GIF", ".jpeg", ".tif", ".webp", ".bmp"])
def test_endings_that_are_read(tmp_path, suffix):
    kind = {".jfif": "JPEG", ".jpe": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:].upper())
    Image.new("RGB", (3, 2), (0, 0, 255)).save(tmp_path / f"a{suffix}", kind)
    (image,) = find_images(tmp_path)
    assert image.decode()[0, 0].tolist() == pytest.approx([0, 0, 255], abs=2)


def test_what_is_left_out_is_counted_and_named(folder, caplog):
    """But for hidden files and what belongs beside images; tars and the files of a batch likewise."""
    for name in ("x.avi", "y.psd", "z.cr2", "w.cr2", "sub/no.bin", "notes.txt", "labels.json", "._a.jpg", ".DS_Store"):
        (folder / "one" / name).touch()
    (folder / "one" / "gone.png").symlink_to(folder / "nowhere.png")
    with tarfile.open(folder / "one" / "shard.tar", "w") as tar:
        for name in ("in/c.png", "in/c.json", "in/c.raw", "in/._c.png"):
            tar.add(folder / "one" / "b.png", name)
    found = find_images(folder / "one")
    assert [str(image).rpartition("one/")[2] for image in found] == ["a.jpg", "b.png", "shard.tar:in/c.png", "sub/a.jpg"]
    first, second = caplog.messages
    assert first == f"6 files in {folder / 'one'} left out, no image that can be read: " + ("gone.png, no.bin, w.cr2, ...")
    assert second == f"1 file in {folder / 'one' / 'shard.tar'} left out, no image that can be read: in/c.raw"
    caplog.clear()
    (folder / "clean").mkdir()
    (folder / "clean" / "a.png").write_bytes((folder / "one" / "b.png").read_bytes())
    find_images(folder / "clean")
    assert caplog.messages == []


def test_a_folder_that_cannot_be_read_is_named(folder, caplog, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "sub/a.jpg" not in name_images([folder / "one"])
    assert caplog.messages == [f"the folder {folder / 'one' / 'sub'} is left out, it cannot be read (Permission denied)"]


def test_a_warning_goes_to_stderr(folder, capsys, monkeypatch):
    """Of a program that has set up no logging."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    (folder / "one" / "x.avi").touch()
    find_images(folder / "one")
    assert "1 file in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", True),
        ("sub/A.PNG", True),
        ("._a.jpg", False),
        (".hidden/a.jpg", False),
        ("sub/.a.jpg", False),
        ("../a.jpg", True),
        ("a.txt", False),
        ("jpg", False),
        (".jpg", False),
    ],
)
def test_one_rule_says_what_an_image_is(name, expected):
    assert is_image(name) == expected


def test_hidden_files_are_no_images_anywhere(folder, monkeypatch):
    """Not in folders, patterns and tars, nor where evaluate and batch look for images."""
    pytest.importorskip("scipy", reason="evaluate needs groupmix-sam[eval]")
    from groupmix_sam.evaluate import Model, Protocol, ReferenceDataset

    (folder / "one" / "shard.tar").unlink()
    for name in ("._a.jpg", ".b.png", ".thumbnails/c.jpg"):
        (folder / "one" / name).parent.mkdir(exist_ok=True)
        (folder / "one" / name).touch()
    monkeypatch.chdir(folder)
    expected = ["a.jpg", "b.png", "sub/a.jpg"]
    assert list(name_images(["one"])) == expected
    assert list(name_images(["one/*.[jp][pn]g"])) == expected[:2]
    assert ReferenceDataset("one", Protocol(), Model(None, "none"), 2).images() == expected


def test_a_list_from_windows(folder):
    """A byte-order mark, CRLF and back slashes."""
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbfone\\b.png\r\none\\sub\\a.jpg\r\n")
    assert [image.path for image in find_images(folder / "list.txt")] == [
        folder / "one" / "b.png",
        folder / "one" / "sub" / "a.jpg",
    ]
    if os.name != "nt":
        (folder / "a\\b.png").touch()
        (folder / "list.txt").write_text("a\\b.png\n")
        assert [image.path for image in find_images(folder / "list.txt")] == [folder / "a\\b.png"], "a name, where it is one"


def test_the_list_that_a_user_had(shared, tmp_path):
    for name in ("list_with_bom.txt", "small.png"):
        (tmp_path / name).write_bytes((shared / "inputs" / name).read_bytes())
    (image,) = find_images(tmp_path / "list_with_bom.txt")
    assert image.path == tmp_path / "small.png"
    assert image.decode().shape == (60, 40, 3)
