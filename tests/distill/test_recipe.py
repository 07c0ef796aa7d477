from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from groupmix_sam.distill import PRESETS, DecoderRecipe, Phase, Recipe, load_recipe
from groupmix_sam.distill.recipe import recipe_from_dict
from groupmix_sam.errors import InvalidInputError, UnknownNameError


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_yaml(name, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(PRESETS[name].to_dict()))
    assert load_recipe(str(path)) == PRESETS[name] == load_recipe(name)


def test_going_on_begins_with_what_is_there():
    """Whole images as at inference, and no start that would undo what was learnt."""
    more = PRESETS["continue"]
    assert [(phase.crop, phase.batch_size) for phase in more.phases] == [(0, 1)]
    assert more == more.continued()
    assert not more.ridge_finish
    assert more.lr < Recipe().lr


def test_a_file_gives_what_differs(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 1\nweight_decay: 1e-3\nphases:\n- {crop: 64, batch_size: 2}\n")
    assert load_recipe(str(path)) == Recipe(lr=1.0, weight_decay=0.001, phases=(Phase(1.0, 64, 2),)), "YAML has 1e-3 as text"


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("lrr: 1", UnknownNameError, "no field of a recipe 'lrr': did you mean lr"),
        ("phases: [{crops: 3}]", UnknownNameError, "field of a phase 'crops': did you mean crop"),
        ("phases: 3", InvalidInputError, "phases is 3"),
        ("decoder: 3", InvalidInputError, "decoder is 3"),
        ("decoder: {minute: 3}", UnknownNameError, "field of a recipe's decoder 'minute': did you mean minutes"),
        ("[1, 2]", InvalidInputError, "holds no recipe"),
        ("a: [", InvalidInputError, "cannot be read as YAML"),
        ("lr: fast", InvalidInputError, "lr is 'fast'"),
        ("lr: nan", InvalidInputError, "lr is nan"),
        ("!!python/object/apply:os.system [ls]", InvalidInputError, "cannot be read as YAML"),
    ],
)
def test_bad_files(tmp_path, text, error, match):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(error, match=match):
        load_recipe(str(path))


def test_unknown_preset():
    with pytest.raises(UnknownNameError, match="did you mean continue"):
        load_recipe("contine")


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": -1, "decoder": DecoderRecipe()}, "epochs is -1"),
        ({"minutes": 0}, "minutes is 0"),
        ({"minutes": float("nan")}, "minutes is nan"),
        ({"minutes": "3"}, "minutes is '3'"),
        ({"lr": True}, "lr is True"),
        ({"warmup": 1}, "warmup is 1"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"hint_weight": -1}, "hint_weight is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"ridge_start": 1}, "ridge_start is 1"),
        ({"loss": "l1"}, "loss is 'l1': use 'mse' or 'huber'"),
        ({"crops_per_image": 0}, "crops_per_image is 0"),
        ({"augmentation": "resized_crop", "crops_per_image": 2}, "a resized crop is one an image"),
        ({"phases": ()}, "no phase"),
        ({"phases": (Phase(0.0, 64, 1),)}, "share"),
        ({"phases": (Phase(1.0, 8, 1),)}, "multiple of 16"),
        ({"phases": (Phase(1.0, 64, 0),)}, "one or more"),
        ({"phases": (Phase(1.0, 64, 6),), "crops_per_image": 4}, "no multiple of crops_per_image, 4"),
        ({"phases": (Phase(), Phase(1.0, 64, 1, "masks"))}, "masks need whole images"),
        ({"phases": (Phase(1.0, 0, 1, "boxes"),)}, "target is 'boxes'"),
    ],
)
def test_bad_recipe(kwargs, match):
    with pytest.raises(InvalidInputError, match=match):
        Recipe(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"epochs": 0}, r"decoder\.epochs is 0"),
        ({"minutes": 0}, r"decoder\.minutes is 0"),
        ({"lr": "fast"}, r"decoder\.lr is 'fast'"),
        ({"lr": 1e-6}, r"decoder\.lowest_lr is 1e-05: give one that is not above lr"),
        ({"warmup": 1}, r"decoder\.warmup is 1"),
        ({"points": 0}, r"decoder\.points is 0"),
        ({"corrections": 1.1}, r"decoder\.corrections is 1\.1"),
    ],
)
def test_bad_decoder_recipe(kwargs, match):
    with pytest.raises(InvalidInputError, match=match):
        DecoderRecipe(**kwargs)


def test_a_recipe_for_the_decoder(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 0\ndecoder: {minutes: 60, lr: 2e-4}\n")
    recipe = load_recipe(str(path))
    assert recipe.decoder == DecoderRecipe(minutes=60.0, lr=2e-4)
    assert not recipe.trains_encoder
    assert Recipe().trains_encoder
    assert not Recipe(minutes=0, decoder=DecoderRecipe()).trains_encoder
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    assert load_recipe(str(path)) == recipe
    assert recipe.in_parts(4).decoder.batch_size == 4, "2 images a step, raised to what four parts can share"


@given(
    st.dictionaries(
        st.text(max_size=8) | st.sampled_from(["lr", "seed", "phases", "loss"]), st.none() | st.integers() | st.text()
    )
)
def test_whatever_stands_in_a_file_is_a_recipe_or_refused(values):
    try:
        recipe = recipe_from_dict(values)
    except (InvalidInputError, UnknownNameError):
        return
    assert recipe == replace(Recipe(), **{k: v for k, v in recipe.__dict__.items() if k in values})
