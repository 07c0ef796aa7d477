"""The recipes of Group-Mix SAM's paper and of NanoSAM, for `groupmix-sam distill --recipe`."""

from dataclasses import replace

from ..distill import Phase, Recipe

__all__ = ["RECIPES"]

# The defaults of github.com/NVIDIA-AI-IOT/nanosam, nanosam/tools/train.py.
NANOSAM = Recipe(
    epochs=200,
    phases=(Phase(1.0, 0, 16),),
    augmentation="resized_crop",
    loss="huber",
    optimizer="adam",
    lr=3e-4,
    schedule="constant",
    warmup=0.0,
    weight_decay=0.0,
    clip_norm=0.0,
    ema_decay=0.0,
    hint_weight=0.0,
    ridge_start=False,
    ridge_finish=False,
    teacher_blocks=False,
)
RECIPES = {
    # Wu & Ma, arXiv 2403.10053: NanoSAM's framework, 13 epochs of batches of 8.
    "paper": replace(NANOSAM, epochs=13, phases=(Phase(1.0, 0, 8),)),
    "nanosam": NANOSAM,
}
