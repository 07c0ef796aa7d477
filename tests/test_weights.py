import hashlib
import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from segment_anything import sam_model_registry

from groupmix_sam import build_sam_groupmix, push_to_hub, save_pretrained, weights
from groupmix_sam.errors import InvalidInputError, SaveError, WeightsError, WeightsNotFoundError
from groupmix_sam.files import write_beside
from groupmix_sam.weights import find_weights, read_weights, save_weights

from .distill.conftest import save_mobile_sam
from .hub import COMMIT, running_hub
from .processes import python

TINY = {"encoder": "gmf_sam_test", "image_size": 256}


def untrained():
    return build_sam_groupmix(None, **TINY)


def assert_same(a, b):
    for (key, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, msg=key)


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(1)
    return untrained()


@pytest.fixture(scope="module")
def folder(sam, tmp_path_factory):
    return save_pretrained(sam, tmp_path_factory.mktemp("weights"), training={"steps": 3})


class TestFiles:
    def test_saved_weights_come_back(self, sam, folder):
        assert_same(sam, build_sam_groupmix(folder, **TINY))
        assert_same(sam, build_sam_groupmix(str(folder / "model.safetensors"), **TINY))

    def test_header_says_what_is_inside(self, folder):
        _, metadata = read_weights(folder / "model.safetensors")
        assert metadata["architecture"] == "gmf_sam_test"
        assert metadata["image_size"] == "256"
        assert json.loads(metadata["training"]) == {"steps": 3}

    def test_header_stands_for_what_is_not_said(self, sam, folder):
        again = build_sam_groupmix(folder)
        assert again.image_encoder.img_size == 256
        assert_same(sam, again)
        assert build_sam_groupmix(folder, image_size=512).image_encoder.img_size == 512

    def test_files_of_others_are_known_by_their_tensors(self, sam, tmp_path):
        path = save_mobile_sam(tmp_path / "mobile_sam.pt")
        mobile = build_sam_groupmix(path)
        assert (weights.encoder_name(mobile), mobile.image_encoder.img_size) == ("sam_tiny_vit_5m", 1024)
        assert_same(mobile, build_sam_groupmix(path, encoder="sam_tiny_vit_5m"))
        save_file({"image_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16)}, tmp_path / "b.safetensors")
        with pytest.raises(WeightsError, match="holds segment-anything's vit_b: load it with its sam_model_registry"):
            build_sam_groupmix(tmp_path / "b.safetensors")
        torch.save(sam.state_dict(), tmp_path / "sam.pt")  # has no header
        with pytest.raises(WeightsError, match="does not say which encoder it is for: pass encoder="):
            build_sam_groupmix(tmp_path / "sam.pt")
        assert_same(sam, build_sam_groupmix(tmp_path / "sam.pt", encoder="gmf_sam_test", image_size=256))

    def test_half_keeps_small_tensors_exact(self, sam, tmp_path):
        path = save_weights(sam, tmp_path / "half.safetensors", half=True)
        stored = load_file(path)
        for key, value in sam.state_dict().items():
            kept = stored[key].float() if stored[key].is_floating_point() else stored[key]
            if value.numel() < 4096:
                assert torch.equal(kept, value), key
            else:
                assert stored[key].dtype == torch.float16
                torch.testing.assert_close(kept, value, rtol=1e-3, atol=1e-6)

    def test_timm_reads_the_encoder_from_the_folder(self, sam, folder):
        encoder = timm.create_model(f"local-dir:{folder}", pretrained=True)
        assert encoder.img_size == 256
        assert_same(sam.image_encoder, encoder)

    def test_card(self, folder):
        card = (folder / "README.md").read_text()
        assert "license: apache-2.0" in card
        assert '"steps": 3' in card
        assert f'build_sam_groupmix("{folder}")' in card

    def test_a_timm_backbone_is_not_promised_to_timm(self, folder, tmp_path):
        backbone = {"encoder": "timm/resnet10t", "image_size": 256}
        sam = build_sam_groupmix(None, **backbone)
        save_pretrained(sam, tmp_path / "backbone")
        assert {p.name for p in (tmp_path / "backbone").iterdir()} == {"model.safetensors", "README.md"}
        assert "timm.create_model" not in (tmp_path / "backbone" / "README.md").read_text()
        assert f'timm.create_model("local-dir:{folder}", pretrained=True)' in (folder / "README.md").read_text()
        assert_same(sam, build_sam_groupmix(tmp_path / "backbone", **backbone))

    def test_mobile_sam_file(self, shared):
        path = shared / "weights" / "mobile_sam.safetensors"
        sam = build_sam_groupmix(path, encoder="sam_tiny_vit_5m")
        stored = load_file(path)
        assert torch.equal(sam.mask_decoder.iou_token.weight, stored["mask_decoder.iou_token.weight"])

    def test_pt_with_tensors_alone(self, sam, tmp_path):
        torch.save(sam.state_dict(), tmp_path / "sam.pt")
        assert_same(sam, build_sam_groupmix(tmp_path / "sam.pt", **TINY))

    def test_a_failed_save_keeps_the_old_file(self, sam, tmp_path, monkeypatch):
        path = save_weights(sam, tmp_path / "a.safetensors")
        before = path.read_bytes()

        def full_disk(_tensors, part, _metadata):
            Path(part).write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(weights, "save_file", full_disk)
        with pytest.raises(OSError, match="No space left"):
            save_weights(sam, path)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


class TestBadFiles:
    def test_a_name_that_no_file_can_have(self):
        with pytest.raises(WeightsNotFoundError, match="check the path"):
            build_sam_groupmix("a" * 5000, **TINY)

    def test_another_format_version(self, sam, tmp_path):
        state_dict, metadata = read_weights(save_weights(sam, tmp_path / "a.safetensors"))
        save_file(state_dict, tmp_path / "b.safetensors", {**metadata, "format_version": "2"})
        with pytest.raises(WeightsError, match="update groupmix-sam"):
            build_sam_groupmix(tmp_path / "b.safetensors", **TINY)

    @pytest.mark.parametrize("content", [{1: torch.zeros(2)}, {"model": torch.zeros(2)}, {"model": [1, 2]}, [1]])
    def test_pt_that_is_no_state_dict(self, tmp_path, content):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(WeightsError, match=r"something else than named tensors|does not fit"):
            build_sam_groupmix(tmp_path / "a.pt", **TINY)

    @given(st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_damage_anywhere_is_told(self, tmp_path, position, noise):
        """A small `.pt` of the old kind, with bytes overwritten: it loads as tensors or is refused, and nothing else."""
        path = tmp_path / "a.pt"
        torch.save({"a": torch.arange(8.0)}, path, _use_new_zipfile_serialization=False)
        data = bytearray(path.read_bytes())
        position %= len(data)
        data[position : position + len(noise)] = noise
        path.write_bytes(data)
        try:
            state_dict, _ = read_weights(path)
        except WeightsError:
            return
        assert all(isinstance(v, torch.Tensor) for v in state_dict.values())

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no weights file .*nothing\.safetensors: check the path"):
            build_sam_groupmix(tmp_path / "nothing.safetensors", **TINY)
        with pytest.raises(WeightsNotFoundError, match=r"model\.safetensors"):
            build_sam_groupmix(tmp_path, **TINY)

    def test_no_teacher_yet(self, tmp_path):
        with pytest.raises(WeightsNotFoundError, match=r"download it from https://\S+/mobile_sam\.pt"):
            build_sam_groupmix(tmp_path / "mobile_sam.pt", **TINY)

    def test_no_default_for_this_encoder(self):
        with pytest.raises(WeightsNotFoundError, match=r"no weights for 'gmf_sam_33124' ship .*None for an untrained"):
            build_sam_groupmix(encoder="gmf_sam_33124")

    @pytest.mark.parametrize("checkpoint", [3, b"default", True])
    def test_wrong_type(self, checkpoint):
        with pytest.raises(InvalidInputError, match="checkpoint is"):
            build_sam_groupmix(checkpoint, **TINY)

    def test_another_architecture(self, folder):
        with pytest.raises(WeightsError, match="pass encoder='gmf_sam_test'"):
            build_sam_groupmix(folder, encoder="gmf_sam_2282")

    def test_weights_missing(self, sam, tmp_path):
        state_dict = {k: v for k, v in sam.state_dict().items() if not k.startswith("mask_decoder.iou")}
        save_file(state_dict, tmp_path / "part.safetensors")
        with pytest.raises(WeightsError, match=r"\d+ missing \(mask_decoder.iou"):
            build_sam_groupmix(tmp_path / "part.safetensors", **TINY)

    @pytest.mark.parametrize("keep", [0, 4, 1000, -1])
    def test_cut_short(self, folder, tmp_path, keep):
        path = tmp_path / "cut.safetensors"
        path.write_bytes((folder / "model.safetensors").read_bytes()[:keep])
        with pytest.raises(WeightsError, match="not a whole safetensors file"):
            build_sam_groupmix(path, **TINY)

    @pytest.mark.parametrize("name", ["evil.pt", "evil.safetensors"])
    def test_a_pickle_is_not_run(self, tmp_path, name):
        victim = tmp_path / "victim"

        class Evil:
            def __reduce__(self):
                return (Path.touch, (victim,))

        path = tmp_path / name
        path.write_bytes(pickle.dumps(Evil()))
        with pytest.raises(WeightsError, match=r"nothing else is ever unpickled|Pickles are not read"):
            build_sam_groupmix(path, **TINY)
        assert not victim.exists()

    def test_known_file_that_was_changed(self, tmp_path, monkeypatch):
        path = tmp_path / "mobile_sam.pt"
        path.write_bytes(b"1234")
        monkeypatch.setattr(weights, "MOBILE_SAM_PT", (4, hashlib.sha256(b"1235").hexdigest()))
        with pytest.raises(WeightsError, match="is damaged: its sha256 is not"):
            build_sam_groupmix(path, encoder="sam_tiny_vit_5m")


# The Hub's client reads its address and its cache when it is imported: each case has a process of its own.
CASE = """
import json, sys
from groupmix_sam import build_sam_groupmix
from groupmix_sam.errors import GroupMixSamError
try:
    sam = build_sam_groupmix(sys.argv[1], encoder="gmf_sam_test", image_size=256)
    print(json.dumps({"sum": sam.mask_decoder.iou_token.weight.double().sum().item()}))
except GroupMixSamError as e:
    print(json.dumps({"error": type(e).__name__, "message": str(e)}))
"""


@pytest.mark.parametrize("name", ["a" * 300, "a file/b"], ids=["too long", "below a file"])
def test_a_path_that_no_file_can_have(tmp_path, name):
    (tmp_path / "a file").touch()
    with pytest.raises(SaveError, match="could not be written"):
        write_beside(tmp_path / name, lambda part: part.write_text("x"))


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    with running_hub() as hub:
        hub.files = {p.name: p.read_bytes() for p in folder.iterdir()}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("TQDM_POSITION", "-1")  # progress bars although there is no terminal
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield hub


def load_from_hub(name):
    done = python(CASE, name)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def cached_files(tmp_path):
    return [p for p in (tmp_path / "hf").rglob("*") if p.is_file() and p.suffix != ".lock" and "blobs" in p.parts]


class TestHub:
    def test_download_then_cache_then_offline(self, hub, sam, tmp_path, monkeypatch):
        expected = sam.mask_decoder.iou_token.weight.double().sum().item()
        pinned = f"hf-hub:org/repo@{COMMIT}"
        first, stderr = load_from_hub(pinned)
        assert first == {"sum": expected}
        assert "model.safetensors" in stderr, "no progress bar"
        assert hub.asked_for_files() > 0
        hub.requests.clear()
        assert load_from_hub(pinned)[0] == {"sum": expected}
        assert hub.asked_for_files() == 0, "a pinned commit in the cache needs no request"
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert load_from_hub(pinned)[0] == {"sum": expected}
        assert load_from_hub("hf-hub:org/repo")[0]["error"] == "WeightsNotFoundError"  # main was never asked for

    @pytest.mark.parametrize("method", ["HEAD", "GET"])
    def test_503_then_success(self, hub, method):
        hub.statuses = [(method, 503)]
        result, _ = load_from_hub("hf-hub:org/repo")
        assert "sum" in result
        assert hub.statuses == []

    def test_503_for_good(self, hub, tmp_path):
        hub.statuses = [("GET", 503)] * 50
        result, _ = load_from_hub("hf-hub:org/repo")
        assert "could not be downloaded" in result["message"]
        assert "503" in result["message"]
        assert cached_files(tmp_path) == []

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("hf-hub:org/other", "there is no hf-hub:org/other, or it is private"),
            ("hf-hub:org/gated", "is gated: accept its terms"),
            ("hf-hub:org/repo@nope", "has no revision 'nope'"),
            ("hf-hub:a b", "is no repository name"),
        ],
    )
    def test_not_there(self, hub, tmp_path, name, message):
        result, _ = load_from_hub(name)
        assert message in result["message"]
        assert cached_files(tmp_path) == []

    def test_no_safetensors(self, hub):
        del hub.files["model.safetensors"]
        result, _ = load_from_hub("hf-hub:org/repo")
        assert "only safetensors are loaded" in result["message"]

    def test_offline_without_cache(self, hub, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        result, _ = load_from_hub("hf-hub:org/repo")
        assert "is HF_HUB_OFFLINE set?" in result["message"]
        assert hub.asked_for_files() == 0

    def test_wrong_hash(self, hub, tmp_path):
        hub.etag = "0" * 64
        result, _ = load_from_hub("hf-hub:org/repo")
        assert result["error"] == "WeightsError"
        assert "arrived damaged" in result["message"]
        assert cached_files(tmp_path) == []

    def test_cut_short(self, hub, tmp_path):
        hub.cut = True
        result, _ = load_from_hub("hf-hub:org/repo")
        assert "could not be downloaded" in result["message"]
        assert cached_files(tmp_path) == []
        hub.cut = False
        assert "sum" in load_from_hub("hf-hub:org/repo")[0]

    @pytest.mark.parametrize("content", [b"not safetensors at all", pickle.dumps({"a": 1})])
    def test_not_safetensors(self, hub, content):
        hub.files["model.safetensors"] = content
        result, _ = load_from_hub("hf-hub:org/repo")
        assert "not a whole safetensors file" in result["message"]

    def test_another_architecture(self, hub, tmp_path):
        other = build_sam_groupmix(None, encoder="gmf_sam_3344")
        hub.files["model.safetensors"] = save_weights(other, tmp_path / "o.safetensors").read_bytes()
        result, _ = load_from_hub("hf-hub:org/repo")
        assert "pass encoder='gmf_sam_3344'" in result["message"]

    def test_timm_gets_the_encoder(self, hub, sam):
        code = (
            "import groupmix_sam, timm, sys\n"
            "m = timm.create_model('hf-hub:org/repo', pretrained=True)\n"
            "print(m.img_size, m.neck.proj.weight.double().sum().item())"
        )
        img_size, total = python(code).stdout.split()
        assert int(img_size) == 256
        assert float(total) == sam.image_encoder.neck.proj.weight.double().sum().item()

    def test_push(self, hub, folder):
        code = (
            "import sys\n"
            "from groupmix_sam import build_sam_groupmix, push_to_hub\n"
            f"sam = build_sam_groupmix({str(folder)!r}, encoder='gmf_sam_test', image_size=256)\n"
            "print(push_to_hub(sam, 'org/repo', training={'steps': 3}))"
        )
        assert python(code).stdout.strip().endswith(COMMIT)
        sent, expected = (safetensors.torch.load(files["model.safetensors"]) for files in (hub.uploads, hub.files))
        assert sent.keys() == expected.keys()
        assert all(torch.equal(sent[key], expected[key]) for key in expected)
        assert 'build_sam_groupmix("hf-hub:org/repo")' in hub.uploads["README.md"].decode()
        assert json.loads(hub.uploads["config.json"]) == json.loads(hub.files["config.json"])


def test_push_to_a_bad_name(sam):
    with pytest.raises(InvalidInputError, match="give 'org/repo'"):
        push_to_hub(sam, "a b/c/d")


class TestBadSaves:
    def test_another_model(self, tmp_path):
        stock = sam_model_registry["vit_b"]()
        for model in (stock, torch.nn.Linear(1, 1), None):
            with pytest.raises(InvalidInputError, match="was not built by build_sam_groupmix"):
                save_pretrained(model, tmp_path / "out")
            with pytest.raises(InvalidInputError, match="was not built by build_sam_groupmix"):
                save_weights(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_record_that_is_no_json(self, sam, tmp_path):
        with pytest.raises(InvalidInputError, match="plain Python values"):
            save_pretrained(sam, tmp_path / "out", training={"loss": torch.zeros(1)})
        assert not (tmp_path / "out").exists()

    def test_a_file_in_the_way(self, sam, tmp_path):
        (tmp_path / "out").touch()
        with pytest.raises(InvalidInputError, match="is a file: give a folder"):
            save_pretrained(sam, tmp_path / "out")


def test_find_weights_takes_paths(folder):
    assert find_weights(folder, "gmf_sam_test") == folder / "model.safetensors"
