"""GroupMixFormer, plain and slow, from the paper and with the official names: what the real one is tested against.

One head at a time, in NCHW and double precision, straight from a state dict: nothing is shared with the package's code.
"""

import torch
import torch.nn.functional as F


def random_state_dict(dims, depths, heads=8, classes=5, in_chans=3):
    """Return random weights under the official implementation's names."""
    g = torch.Generator().manual_seed(1)
    sd = {}

    def weight(name, *shape):
        fan_in = torch.Size(shape[1:]).numel() or 1
        sd[name] = torch.randn(shape, generator=g) / fan_in**0.5

    def bias(name, n):
        sd[name] = 0.3 * torch.randn(n, generator=g)

    def norm(name, n, running):
        sd[f"{name}.weight"] = 0.5 + torch.rand(n, generator=g)
        bias(f"{name}.bias", n)
        if running:
            bias(f"{name}.running_mean", n)
            sd[f"{name}.running_var"] = 0.5 + torch.rand(n, generator=g)

    half = dims[0] // 2
    for i, (n_in, n_out) in enumerate(((in_chans, half), (half, dims[0])), 1):
        weight(f"conv_stem.proj{i}.weight", n_out, n_in, 3, 3)
        bias(f"conv_stem.proj{i}.bias", n_out)
        norm(f"conv_stem.norm{i}", n_out, True)
    for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        before = dims[max(i - 1, 0)]
        weight(f"patch_embed_layers.{i}.proj.conv1.weight", before, 1, 3, 3)
        weight(f"patch_embed_layers.{i}.proj.pointwise_conv.weight", dim, before, 1, 1)
        norm(f"patch_embed_layers.{i}.norm", dim, True)
        for j in range(depth):
            b = f"groupmixformer_backbone.{i}.gma_stage.{j}."
            seg = dim // 5
            weight(f"{b}cpe.proj.weight", dim, 1, 3, 3)
            bias(f"{b}cpe.proj.bias", dim)
            for name, n_in, n_out in (("att.qkv", dim, 3 * dim), ("att.proj", dim, dim), ("mlp.fc1", dim, 4 * dim)):
                weight(f"{b}{name}.weight", n_out, n_in)
                bias(f"{b}{name}.bias", n_out)
            weight(f"{b}mlp.fc2.weight", dim, 4 * dim)
            bias(f"{b}mlp.fc2.bias", dim)
            norm(f"{b}norm1", dim, False)
            norm(f"{b}norm2", dim, False)
            weight(f"{b}att.aggregator.agg0.conv.conv1.weight", 3 * seg, 1, 3, 3)
            weight(f"{b}att.aggregator.agg0.conv.pointwise_conv.weight", seg, 3 * seg, 1, 1)
            norm(f"{b}att.aggregator.agg0.norm", seg, False)
            norm(f"{b}att.aggregator.norm0", seg, True)
            for n, k in ((1, 3), (2, 5), (3, 7)):
                weight(f"{b}att.aggregator.agg{n}.conv1.weight", seg, 1, k, k)
                weight(f"{b}att.aggregator.agg{n}.pointwise_conv.weight", seg, seg, 1, 1)
                norm(f"{b}att.aggregator.norm{n}", seg, True)
            head = 4 * seg // heads
            for n, (k, count) in enumerate(((3, 2), (5, 3), (7, 3))):
                weight(f"{b}att.crpe.conv_list.{n}.weight", count * head, 1, k, k)
                bias(f"{b}att.crpe.conv_list.{n}.bias", count * head)
    norm("norm4", dims[-1], True)
    weight("head.weight", classes, dims[-1])
    bias("head.bias", classes)
    return sd


def forward(state_dict, x, heads=8):
    """Return the four stages' outputs and the logits of the official classifier in eval mode."""
    sd = {k: v.double() for k, v in state_dict.items()}
    x = x.double()

    def bn(x, name):
        mean, var = sd[f"{name}.running_mean"], sd[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, sd[f"{name}.weight"], sd[f"{name}.bias"], eps=1e-5)

    def ln(x, name, eps):
        x = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], sd[f"{name}.weight"], sd[f"{name}.bias"], eps)
        return x.permute(0, 3, 1, 2)

    def linear(x, name):
        return torch.einsum("bchw,dc->bdhw", x, sd[f"{name}.weight"]) + sd[f"{name}.bias"][:, None, None]

    def depthwise(x, name, stride=1):
        w = sd[f"{name}.weight"]
        return F.conv2d(x, w, sd.get(f"{name}.bias"), stride, w.shape[-1] // 2, groups=len(w))

    def separable(x, name, stride=1):
        return F.conv2d(depthwise(x, f"{name}.conv1", stride), sd[f"{name}.pointwise_conv.weight"])

    def attention(x, b):
        dim = x.shape[1]
        seg = dim // 5
        qkv = linear(x, f"{b}qkv").split(dim, dim=1)
        mixed = []
        for t in qkv:
            parts = t.split(seg, dim=1)
            gathered = [parts[0], *(separable(parts[n], f"{b}aggregator.agg{n}") for n in (1, 2, 3))]
            mixed.append([F.hardswish(bn(g, f"{b}aggregator.norm{n}")) for n, g in enumerate(gathered)])
        q, k, v = (torch.cat(parts, dim=1) for parts in mixed)
        local = separable(torch.cat([t.split(seg, dim=1)[4] for t in qkv], dim=1), f"{b}aggregator.agg0.conv")
        local = F.hardswish(ln(local, f"{b}aggregator.agg0.norm", 1e-5))
        head = q.shape[1] // heads
        position = torch.cat(
            [
                depthwise(part, f"{b}crpe.conv_list.{n}")
                for n, part in enumerate(v.split([2 * head, 3 * head, 3 * head], dim=1))
            ],
            dim=1,
        )
        out = []
        for h in range(heads):
            chans = slice(h * head, (h + 1) * head)
            qh, kh, vh = (t[:, chans].flatten(2) for t in (q, k, v))
            weights = torch.softmax(kh, dim=-1) @ vh.transpose(1, 2)
            attended = (dim // heads) ** -0.5 * torch.einsum("bcn,bcd->bdn", qh, weights)
            out.append(attended.view(q.shape[0], head, *q.shape[2:]) + q[:, chans] * position[:, chans])
        return linear(torch.cat([*out, local], dim=1), f"{b}proj")

    for i in (1, 2):
        x = F.conv2d(x, sd[f"conv_stem.proj{i}.weight"], sd[f"conv_stem.proj{i}.bias"], stride=2, padding=1)
        x = F.hardswish(bn(x, f"conv_stem.norm{i}"))
    stages = []
    for i in range(4):
        x = separable(x, f"patch_embed_layers.{i}.proj", stride=1 if i == 0 else 2)
        x = F.hardswish(bn(x, f"patch_embed_layers.{i}.norm"))
        j = 0
        while f"groupmixformer_backbone.{i}.gma_stage.{j}.norm1.weight" in sd:
            b = f"groupmixformer_backbone.{i}.gma_stage.{j}."
            x = x + depthwise(x, f"{b}cpe.proj")
            x = x + attention(ln(x, f"{b}norm1", 1e-6), f"{b}att.")
            x = x + linear(F.gelu(linear(ln(x, f"{b}norm2", 1e-6), f"{b}mlp.fc1")), f"{b}mlp.fc2")
            j += 1
        stages.append(x)
    pooled = bn(x, "norm4").mean((2, 3))
    return stages, pooled @ sd["head.weight"].T + sd["head.bias"]
