import yaml

from groupmix_sam.distill import PRESETS, Phase, load_recipe
from groupmix_sam.reproduce.recipes import RECIPES


def test_they_survive_yaml(tmp_path):
    path = tmp_path / "recipe.yaml"
    for name, recipe in RECIPES.items():
        path.write_text(yaml.safe_dump(recipe.to_dict()))
        assert load_recipe(str(path)) == recipe == load_recipe(name, PRESETS | RECIPES)
    assert not PRESETS.keys() & RECIPES.keys()


def test_the_papers_recipe():
    """Huber on the features alone, 1024, batch 8, Adam at 3e-4, 13 epochs, no start of any kind."""
    paper = RECIPES["paper"]
    assert (paper.epochs, paper.phases, paper.loss, paper.optimizer, paper.lr) == (
        13,
        (Phase(1.0, 0, 8),),
        "huber",
        "adam",
        3e-4,
    )
    assert not any([paper.hint_weight, paper.ridge_start, paper.ridge_finish, paper.teacher_blocks, paper.ema_decay])
