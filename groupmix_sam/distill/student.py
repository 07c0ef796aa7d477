"""The student: an encoder with what it needs to be taught, and the starts that it gets from the teacher."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..encoders.backbone import LinearNeck
from ..encoders.config import STRIDE
from ..encoders.groupmixformer import GroupMixFormer
from ..encoders.neck import ConcatNeck, SamNeck, change_stride
from ..errors import InvalidInputError
from .data import Maps

__all__ = ["Student", "check_student", "fit_neck", "freeze_batch_norm", "scale_neck", "start_from_teacher"]


class Student(nn.Module):
    """An encoder, with the 1x1 maps from its own stages to the teacher's hints; they are dropped after training.

    "hint_out" is learnt by the output of the first stage at stride 16, and "hint_in", which GroupMixFormer alone shows, by that
    stage's input, after its patch embedding. Where the features have a stride of 8, both are resized to it, as in the neck.

    Args:
        encoder: A SAM encoder of this package.
        hints: The teacher's hints that are to be learnt, by name, with their channels; those without a place are left out.
    """

    def __init__(self, encoder: nn.Module, hints: dict[str, int]) -> None:
        super().__init__()
        self.encoder = encoder
        info = cast(list[dict[str, Any]], encoder.feature_info)
        self.stage = next((i for i, stage in enumerate(info) if stage["reduction"] == STRIDE), None)
        places = {"hint_out"} if self.stage is not None else set()
        if isinstance(encoder, GroupMixFormer):
            places.add("hint_in")
        self.hints = nn.ModuleDict()
        for name in sorted(places & hints.keys()):
            chs = info[cast(int, self.stage)]["num_chs"]
            hint = nn.Conv2d(chs, hints[name], kernel_size=1)
            nn.init.dirac_(hint.weight)
            nn.init.zeros_(cast(Tensor, hint.bias))
            self.hints[name] = hint

    def forward(self, x: Tensor) -> Maps:
        """Map B x 3 x H x W to the teacher's maps, B x H/s x W/s x C, where s is the encoder's `embed_stride`."""
        encoder = cast(Any, self.encoder)
        if not self.hints:
            return {"features": encoder(x).permute(0, 2, 3, 1)}
        seen: dict[str, Tensor] = {}
        handles = []
        if "hint_in" in self.hints:
            embed = encoder.stages[self.stage].patch_embed
            handles.append(embed.register_forward_hook(lambda _m, _i, out: seen.__setitem__("hint_in", out)))
        try:
            features, (seen["hint_out"],) = encoder.forward_intermediates(x, indices=[self.stage])
        finally:
            for handle in handles:
                handle.remove()
        maps = {"features": features}
        maps |= {name: change_stride(hint(seen[name]), STRIDE, encoder.embed_stride) for name, hint in self.hints.items()}
        return {name: m.permute(0, 2, 3, 1) for name, m in maps.items()}


def check_student(encoder: nn.Module) -> None:
    """Raise InvalidInputError unless the encoder ends in SAM's 256 channels."""
    if getattr(encoder, "neck", None) is None or cast(Any, encoder).num_classes:
        raise InvalidInputError(
            f"a {type(encoder).__name__} like this has no SAM features to learn: use a name of groupmix_sam.sam.ENCODERS "
            "or timm/<a backbone's name>, without classes."
        )


def start_from_teacher(encoder: nn.Module, teacher: dict[str, Tensor]) -> int:
    """Copy the MLPs, norms and local convolutions of MobileSAM's third stage into the student's; return of how many.

    `teacher` has MobileSAM's names. A local convolution replaces its input and the student's is added to it, so the identity is
    taken off. Blocks of another width or of another family of encoders are left as they are.
    """
    if not isinstance(encoder, GroupMixFormer) or len(encoder.stages) < 3:
        return 0
    blocks = cast(Any, encoder.stages[2]).blocks
    for i, block in enumerate(blocks):
        prefix = f"image_encoder.layers.2.blocks.{i}."
        fc1 = teacher.get(f"{prefix}mlp.fc1.weight")
        if fc1 is None or fc1.shape != block.mlp.fc1.weight.shape:
            return i
        for module, name in ((block.norm2, "norm"), (block.mlp.fc1, "fc1"), (block.mlp.fc2, "fc2")):
            module.load_state_dict({k: teacher[f"{prefix}mlp.{name}.{k}"] for k in ("weight", "bias")})
        bn = {k: teacher[f"{prefix}local_conv.bn.{k}"] for k in ("weight", "bias", "running_mean", "running_var")}
        scale = bn["weight"] / (bn["running_var"] + 1e-5).sqrt()
        weight = teacher[f"{prefix}local_conv.c.weight"] * scale[:, None, None, None]
        weight[:, :, 1, 1] -= 1.0
        block.cpe.load_state_dict({"weight": weight, "bias": bn["bias"] - bn["running_mean"] * scale})
    return len(blocks)


@torch.no_grad()
def fit_neck(encoder: nn.Module, batches: Iterable[Maps], ridge: float) -> bool:
    """Set a linear neck to the ridge regression of the teacher's features on the backbone's; return whether there is one.

    `ridge` is what is added to the diagonal, in units of its mean.
    """
    if not isinstance(encoder.neck, (ConcatNeck, LinearNeck)):
        return False
    proj = encoder.neck.proj
    device = proj.weight.device
    gram = torch.zeros(proj.in_channels, proj.in_channels, dtype=torch.float64)
    cross = torch.zeros(proj.in_channels, proj.out_channels, dtype=torch.float64)
    seen: list[Tensor] = []
    handle = proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    try:
        for batch in batches:
            encoder(batch["input"].to(device))
            valid = batch["valid"].flatten()
            x = seen.pop().permute(0, 2, 3, 1).flatten(0, 2)[valid].cpu().double()
            gram += x.T @ x
            cross += x.T @ batch["features"].flatten(0, 2)[valid].cpu().double()
    finally:
        handle.remove()
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    proj.weight.copy_(torch.linalg.solve(gram, cross).T[:, :, None, None])
    return True


@torch.no_grad()
def scale_neck(encoder: nn.Module, batches: Iterable[Maps]) -> bool:
    """Give the last norm of SAM's neck the teacher's mean and deviation by channel; return whether there is one.

    A new one puts out values ten times as large as the teacher's, and learning that alone takes hundreds of steps.
    """
    if not isinstance(encoder.neck, SamNeck):
        return False
    norm = encoder.neck.norm2
    device = norm.weight.device
    ours, theirs = [], []
    for batch in batches:
        out = encoder(batch["input"].to(device)).permute(0, 2, 3, 1)
        valid = batch["valid"].to(device)
        ours.append(out[valid])
        theirs.append(batch["features"].to(device)[valid])
    (mean, deviation), (target, wanted) = ((t.mean(0), t.std(0)) for t in (torch.cat(ours), torch.cat(theirs).float()))
    scale = wanted / deviation
    norm.weight.mul_(scale)
    norm.bias.sub_(mean).mul_(scale).add_(target)
    return True


def freeze_batch_norm(model: nn.Module) -> None:
    """Keep BatchNorm's statistics as they are: one image at a time is too few to estimate them from."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
