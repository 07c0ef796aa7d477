"""The paper's Table 1: image encoders trained and tested as classifiers of a folder of images, all alike.

Eleven of the twelve come from vit-pytorch, in sizes of about 5 M parameters; the paper does not say which it took.
"""

import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from tqdm import tqdm

import groupmix_sam.encoders  # noqa: F401  registers groupmixformer_mobile in timm

from ..errors import InvalidInputError, MissingExtraError, UnknownNameError
from ..files import make_folder, write_beside
from ..images import read_image

try:
    from vit_pytorch.cait import CaiT
    from vit_pytorch.cct import CCT
    from vit_pytorch.cross_vit import CrossViT
    from vit_pytorch.cvt import CvT
    from vit_pytorch.deepvit import DeepViT
    from vit_pytorch.levit import LeViT
    from vit_pytorch.nest import NesT
    from vit_pytorch.pit import PiT
    from vit_pytorch.regionvit import RegionViT
    from vit_pytorch.t2t import T2TViT
    from vit_pytorch.vit import ViT
except ImportError as e:
    raise MissingExtraError.of("vit_pytorch", "encoders") from e

T = TypeVar("T")

__all__ = ["PAPER", "Epoch", "Settings", "build_encoder", "encoder_table", "plot", "read_log", "train_encoders"]

# Table 1 of the paper, on its private data: train loss, train accuracy, validation loss, validation accuracy.
PAPER = {
    "DeepViT": (0.3945, 0.8608, 0.4091, 0.8562),
    "NesT": (0.4032, 0.8608, 0.4099, 0.8571),
    "RegionViT": (0.2121, 0.8956, 0.3001, 0.8801),
    "ViT": (0.2082, 0.9098, 0.2934, 0.8819),
    "CCT": (0.1381, 0.9446, 0.2248, 0.8909),
    "CrossViT": (0.0506, 0.9858, 0.3730, 0.8978),
    "T2T-ViT": (0.1284, 0.9562, 0.2305, 0.8988),
    "PiT": (0.2220, 0.9098, 0.2661, 0.8988),
    "CaiT": (0.1095, 0.9665, 0.285, 0.9127),
    "CvT": (0.0057, 0.9920, 0.3573, 0.9266),
    "LeViT": (0.0402, 0.9910, 0.1903, 0.9345),
    "GroupMixFormer": (0.0388, 0.9927, 0.1542, 0.9673),
}


@dataclass(frozen=True)
class Settings:
    """What is the same for all encoders.

    Attributes:
        epochs: How often the training images are seen.
        image_size: Side in pixels: 224, or a multiple of 64.
        batch_size: Images a step.
        lr: AdamW's learning rate at its highest, after the first epoch; it then falls to nothing by a cosine.
        weight_decay: AdamW's.
        held_out: Share of each class that is tested on, where the folder has no `val`.
        seed: Of the weights, the order, the augmentation and the split.
    """

    epochs: int = 30
    image_size: int = 224
    batch_size: int = 32
    lr: float = 5e-4
    weight_decay: float = 0.05
    held_out: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.image_size != 224 and (self.image_size < 64 or self.image_size % 64):
            raise InvalidInputError(
                f"the image size is {self.image_size}: use 224 or a multiple of 64, which suit all encoders."
            )
        if self.epochs < 1 or self.batch_size < 2 or not 0 < self.held_out < 1:
            raise InvalidInputError(f"{self} cannot be trained by: give 1 epoch, batches of 2 and a held-out share under 1.")


@dataclass(frozen=True)
class Epoch:
    """A line of the log: mean losses (cross entropy) and accuracies of one encoder after one epoch."""

    encoder: str
    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float


def build_encoder(name: str, image_size: int, classes: int) -> nn.Module:
    """Return an untrained classifier: one of the table's, or any of timm's.

    Raises:
        UnknownNameError: it is neither.
    """
    patch = 16 if image_size >= 128 else 8
    size: dict[str, Any] = {"image_size": image_size, "num_classes": classes}
    plain = {**size, "patch_size": patch, "dim": 192, "depth": 12, "heads": 3, "mlp_dim": 768}
    small = {"sm_dim": 96, "sm_patch_size": patch // 2, "sm_enc_heads": 3, "sm_enc_mlp_dim": 384, "sm_enc_dim_head": 32}
    large = {"lg_dim": 192, "lg_patch_size": patch, "lg_enc_heads": 3, "lg_enc_mlp_dim": 768, "cross_attn_heads": 3}
    conv = {"n_conv_layers": 2, "kernel_size": 3, "stride": 2, "padding": 1, "positional_embedding": "learnable"}
    window = 7 if image_size == 224 else 2
    table: dict[str, Callable[[], Any]] = {
        "DeepViT": lambda: DeepViT(**plain),
        "NesT": lambda: NesT(**size, patch_size=4, dim=64, heads=2, num_hierarchies=3, block_repeats=(2, 2, 8)),
        "RegionViT": lambda: RegionViT(dim=(40, 80, 160, 320), depth=(2, 2, 8, 2), window_size=window, num_classes=classes),
        "ViT": lambda: ViT(**plain),
        "CCT": lambda: CCT(image_size, 256, num_classes=classes, num_layers=7, num_heads=4, mlp_ratio=2, **conv),
        "CrossViT": lambda: CrossViT(**size, **small, **large, depth=3),
        "T2T-ViT": lambda: T2TViT(**size, dim=256, depth=7, heads=4, mlp_dim=512, t2t_layers=((7, 4), (3, 2))),
        "PiT": lambda: PiT(**size, patch_size=patch, dim=64, depth=(2, 6, 4), heads=(2, 4, 8), mlp_dim=256, dim_head=32),
        "CaiT": lambda: CaiT(**{**plain, "heads": 4, "dim_head": 48}, cls_depth=2),
        "CvT": lambda: CvT(num_classes=classes, s1_emb_dim=32, s2_emb_dim=96, s3_emb_dim=192),
        "LeViT": lambda: LeViT(
            **size, dim=(128, 256, 384), depth=(2, 3, 4), heads=(4, 6, 8), mlp_mult=2, dim_key=16, dim_value=32
        ),
        "GroupMixFormer": lambda: timm.create_model("groupmixformer_mobile", num_classes=classes),
    }
    if name in table:
        return table[name]()
    if not timm.is_model(name):
        raise UnknownNameError.near("encoder", name, [*table, *timm.list_models()])
    try:
        return timm.create_model(name, num_classes=classes, img_size=image_size)
    except TypeError:  # it takes any size
        return timm.create_model(name, num_classes=classes)


def train_encoders(names: Sequence[str], data: Path, output: Path, settings: Settings, workers: int = 2) -> list[Epoch]:
    """Train and test encoders one after another; return the whole log.

    Writes `settings.json` and `log.csv` into `output`. Encoders whose epochs are all in the log are not trained again; the
    epochs of one that was cut off are dropped, and it starts anew.

    Args:
        names: Of the table or of timm.
        data: A folder with `train` and `val` (or `test`), each with a folder of images a class; or with those alone.
        output: Where to write.
        settings: What is the same for all.
        workers: Processes that read images; the figures do not depend on them.

    Raises:
        InvalidInputError: the data are not like that, or `output` is of other settings or data.
        SaveError: `output` cannot be written to.
    """
    train, val, classes = _read_folder(data, settings)
    for name in names:
        build_encoder(name, settings.image_size, len(classes))  # an unknown name is told before the first is trained
    make_folder(output)
    record = {**asdict(settings), "classes": classes, "train": len(train), "val": len(val)}
    file = output / "settings.json"
    if file.exists() and _read(file, lambda: json.loads(file.read_text(encoding="utf-8"))) != record:
        raise InvalidInputError(f"{output} was made with other settings or data, see {file}: give another output.")
    _write(file, json.dumps(record, indent=2))
    done = [epoch for epoch in read_log(output) if epoch.epoch <= settings.epochs]
    finished = {epoch.encoder for epoch in done if epoch.epoch == settings.epochs}
    log = [epoch for epoch in done if epoch.encoder in finished]
    _write_log(output, log)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in names:
        if name in finished:
            continue
        torch.manual_seed(settings.seed)
        model = build_encoder(name, settings.image_size, len(classes)).to(device)
        for epoch in tqdm(_train(name, model, train, val, settings, workers), name, settings.epochs, disable=None):
            log.append(epoch)
            _write_log(output, log)
    return log


def read_log(output: Path) -> list[Epoch]:
    """Return the lines of `log.csv`, none if there is none."""
    path = output / "log.csv"
    if not path.exists():
        return []

    def read() -> list[Epoch]:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                Epoch(row.pop("encoder"), int(row.pop("epoch")), **{key: float(value) for key, value in row.items()})
                for row in csv.DictReader(file)
            ]

    return _read(path, read)


def _read(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise InvalidInputError(f"{path} cannot be read ({e}): give another output, or remove it to begin again.") from e


def encoder_table(log: Sequence[Epoch]) -> list[list[str]]:
    """Return cells: each encoder after its last epoch, and the paper's figures beside it."""
    columns = ["train loss", "train acc", "val loss", "val acc"]
    cells = [["encoder", *columns, *(f"paper's {column}" for column in columns)]]
    last = {epoch.encoder: epoch for epoch in log}
    for name, epoch in sorted(last.items(), key=lambda item: item[1].val_accuracy):
        ours = (epoch.train_loss, epoch.train_accuracy, epoch.val_loss, epoch.val_accuracy)
        theirs = [f"{value:.4f}" for value in PAPER[name]] if name in PAPER else [""] * 4
        cells.append([name, *(f"{value:.4f}" for value in ours), *theirs])
    return cells


def plot(log: Sequence[Epoch], path: Path) -> None:
    """Draw losses and accuracies by epoch as a PNG."""
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise MissingExtraError.of("matplotlib", "encoders") from e
    figure = Figure(figsize=(12, 8), layout="constrained")
    names = list(dict.fromkeys(epoch.encoder for epoch in log))
    panels = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    for axes, what in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for i, name in enumerate(names):
            lines = [epoch for epoch in log if epoch.encoder == name]
            style = ("-", "--", ":")[i // 10 % 3]  # there are ten colours
            axes.plot([e.epoch for e in lines], [getattr(e, what) for e in lines], style, label=name)
        axes.set(title=what.replace("_", " "), xlabel="epoch")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    write_beside(path, lambda part: figure.savefig(part, format="png"))


class _Images(Dataset[tuple[Tensor, int]]):
    """Images with their classes; augmented, if they are, alike for all encoders: by seed, epoch and number."""

    def __init__(self, samples: Sequence[tuple[str, int]], settings: Settings, augment: bool) -> None:
        size = settings.image_size
        crop = [transforms.RandomResizedCrop(size, (0.5, 1.0)), transforms.RandomHorizontalFlip()]
        finish = [transforms.ToTensor(), transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)]
        self.transform = transforms.Compose([*(crop if augment else [transforms.Resize((size, size))]), *finish])
        self.samples, self.seed, self.epoch = samples, settings.seed, 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, target = self.samples[index]
        image = Image.fromarray(read_image(path))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, self.epoch, index)) % 2**31)
            return self.transform(image), target


def _read_folder(data: Path, settings: Settings) -> tuple[_Images, _Images, list[str]]:
    """Return the images to train and to test on, and the classes' names."""
    held_out = next((data / name for name in ("val", "test") if (data / name).is_dir()), None)
    split = (data / "train").is_dir() and held_out is not None
    try:
        folders = [ImageFolder(str(folder)) for folder in ((data / "train", held_out) if split else (data,))]
    except FileNotFoundError as e:
        raise InvalidInputError(f"{data} is no data set ({e}): give train/CLASS/, val/CLASS/ or CLASS/, with images.") from e
    classes = folders[0].classes
    if len(classes) < 2 or folders[-1].classes != classes:
        raise InvalidInputError(
            f"{data} has the classes {classes} and {folders[-1].classes}: give two or more, the same in both."
        )
    train, val = folders[0].samples, folders[-1].samples
    if not split:
        generator = torch.Generator().manual_seed(settings.seed)
        train, val = [], []
        for target in range(len(classes)):
            samples = [sample for sample in folders[0].samples if sample[1] == target]
            order = torch.randperm(len(samples), generator=generator).tolist()
            count = max(1, round(settings.held_out * len(samples)))
            val += [samples[i] for i in order[:count]]
            train += [samples[i] for i in order[count:]]
    if len(train) < 2:
        raise InvalidInputError(f"{data} has {len(train)} images to train on: give two or more a class.")
    return _Images(train, settings, True), _Images(val, settings, False), classes


def _train(name: str, model: nn.Module, train: _Images, val: _Images, settings: Settings, workers: int) -> Any:
    """Yield an Epoch after each epoch."""
    device = next(model.parameters()).device
    order = torch.Generator().manual_seed(settings.seed)
    batch = settings.batch_size
    loader = DataLoader(train, batch, shuffle=True, drop_last=len(train) > batch, num_workers=workers, generator=order)
    val_loader = DataLoader(val, batch, num_workers=workers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    steps, warmup = settings.epochs * len(loader), len(loader)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps - warmup, 1)),
        ],
        [warmup],
    )
    for epoch in range(1, settings.epochs + 1):
        began, train.epoch = time.perf_counter(), epoch
        trained, tested = _Mean(), _Mean()
        model.train()
        for images, targets in loader:
            loss = trained.add(model(images.to(device)), targets.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.inference_mode():
            for images, targets in val_loader:
                tested.add(model(images.to(device)), targets.to(device))
        yield Epoch(name, epoch, *trained.values(), *tested.values(), time.perf_counter() - began)


class _Mean:
    """The mean loss and accuracy over images."""

    def __init__(self) -> None:
        self.loss = self.correct = 0.0
        self.count = 0

    def add(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, targets)
        self.loss += loss.item() * len(targets)
        self.correct += (logits.argmax(1) == targets).sum().item()
        self.count += len(targets)
        return loss

    def values(self) -> tuple[float, float]:
        return self.loss / self.count, self.correct / self.count


def _write_log(output: Path, log: Sequence[Epoch]) -> None:
    lines = [",".join(field.name for field in fields(Epoch)), *(",".join(map(str, astuple(epoch))) for epoch in log)]
    _write(output / "log.csv", "\n".join([*lines, ""]))


def _write(path: Path, text: str) -> None:
    write_beside(path, lambda part: part.write_text(text, encoding="utf-8"))
