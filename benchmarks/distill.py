"""Speed of distillation against a plain loop in NanoSAM's way, same student, teacher and images, side by side in one run.

    python benchmarks/distill.py IMAGES --teacher mobile_sam.pt

The plain loop: RandomResizedCrop to 1024, the teacher on it, the student on it, Huber, Adam. Ours: the default recipe's phases,
in its proportions, without the cache (two crops an image, as docs/distill.md advises there) and with it. Both by turns, one
round after the other, on a few images. An image is what gives one term of the loss: a crop or a whole image. As crops are
smaller, the pixels are counted too, in whole images' worth. At last: what share of our step, reading and all, is outside the
student's forward and backward passes.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import timm
import torch
from machine import describe, interval
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import RandomResizedCrop

from groupmix_sam.distill import Grid, ImageFile, Phase, Recipe, cache_features, find_images, load_teacher
from groupmix_sam.distill.data import as_input
from groupmix_sam.distill.losses import Objective
from groupmix_sam.distill.run import start_accelerator
from groupmix_sam.distill.student import Student
from groupmix_sam.distill.trainer import Feed, make_optimizer, pixels_of
from groupmix_sam.memory import keep_freed_memory

GRID = Grid()
PLAIN_BATCH = 2
STEPS = {256: 6, 512: 6, 0: 3}  # of ours with the cache in a round, by crop; one each without


class Folder(Dataset[torch.Tensor]):
    def __init__(self, images: list[ImageFile]) -> None:
        self.images = images
        self.crop = RandomResizedCrop((GRID.image_size, GRID.image_size))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        pixels = self.crop(torch.from_numpy(self.images[i].decode()).permute(2, 0, 1))
        return as_input(pixels.permute(1, 2, 0).contiguous(), GRID.image_size)[0]


def plain_steps(images: list[ImageFile], teacher: Callable[[torch.Tensor], dict[str, torch.Tensor]]) -> Iterator[None]:
    """Take a step in NanoSAM's way whenever asked."""
    student = timm.create_model("gmf_sam_2282").train()
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-4)
    while True:
        for batch in DataLoader(Folder(images), PLAIN_BATCH, shuffle=True, num_workers=1, drop_last=True):
            features = teacher(batch)["features"]
            optimizer.zero_grad()
            torch.nn.functional.huber_loss(student(batch), features).backward()
            optimizer.step()
            yield


class Ours:
    """The default recipe's steps, phase by phase."""

    def __init__(self, images: list, teacher: object, recipe: Recipe) -> None:
        self.recipe = recipe
        student = Student(timm.create_model("gmf_sam_2282"), {"hint_in": 160, "hint_out": 160}).train()
        self.student, self.average = student, ModelEmaV3(student, recipe.ema_decay)
        self.optimizer = make_optimizer(student, recipe)
        self.objective = Objective(recipe, {"features": 1.0, "hint_in": 1.0, "hint_out": 1.0}, None)
        self.feed = Feed(images, teacher, recipe, GRID, start_accelerator(), 1, Path(os.devnull))
        self.streams = [self.feed.batches(i, 0, 10**6) for i in range(len(recipe.phases))]

    def forward_backward(self, batch: dict[str, torch.Tensor], phase: Phase) -> None:
        loss, _ = self.objective(self.student(batch["input"]), batch, phase, 1.0, 0)
        loss.backward()

    def step(self, number: int) -> tuple[float, float]:
        """Take a step as training does; return its seconds, and those of the passes forward and backward."""
        begin = time.perf_counter()
        batch = next(self.streams[number])
        read = time.perf_counter()
        self.forward_backward(batch, self.recipe.phases[number])
        passed = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.student)
        return time.perf_counter() - begin, passed - read

    def rates(self, counts: dict[int, int]) -> tuple[float, float, float]:
        """Return images and whole images' pixels a second over the recipe, and the share outside the passes."""
        images = pixels = seconds = passes = 0.0
        for number, phase in enumerate(self.recipe.phases):
            timed = [self.step(number) for _ in range(counts[phase.crop])]
            steps = phase.share / pixels_of(phase, GRID.image_size)  # in a run of one whole image
            images += steps * phase.batch_size
            pixels += phase.share
            seconds += steps * sum(t for t, _ in timed) / len(timed)
            passes += steps * sum(t for _, t in timed) / len(timed)
        return images / seconds, pixels / seconds, 1 - passes / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=24, help="how many of the images to use")
    args = parser.parse_args()
    images = find_images(args.images)[: args.count]
    teacher, _ = load_teacher(args.teacher)
    recipe = Recipe()
    with tempfile.TemporaryDirectory() as folder:
        cached, _ = cache_features(images, teacher, folder, GRID)
        plain = plain_steps(images, teacher)
        next(plain)
        rows: dict[str, list[float]] = {}
        keep_freed_memory()  # for both: the plain loop profits from it as much
        asked, kept = Ours(images, teacher, replace(recipe, crops_per_image=2)), Ours(cached, teacher, recipe)
        for _ in range(args.rounds):
            begin = time.perf_counter()
            next(plain)
            reference = PLAIN_BATCH / (time.perf_counter() - begin)
            for name, ours, counts in (("without the cache", asked, dict.fromkeys(STEPS, 1)), ("with the cache", kept, STEPS)):
                rate, pixels, outside = ours.rates(counts)
                rows.setdefault(f"images/s, {name}", []).append(rate / reference)
                rows.setdefault(f"pixels/s, {name}", []).append(pixels / reference)
                if name == "with the cache":
                    rows.setdefault("share outside the student's passes", []).append(outside)
    print(describe())
    print(f"{args.rounds} rounds by turns, {args.count} images")
    for name, values in rows.items():
        median, low, high = interval(values)
        print(f"{name}: {median:.3g} ({low:.3g} to {high:.3g})" + (" x the plain loop" if "/s" in name else ""))


if __name__ == "__main__":
    main()
