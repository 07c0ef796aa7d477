"""SAM's prompt encoder and mask decoder rearranged for inference: the same logits from less work, for many prompts at once.

What depends on the image alone is computed once an image (`image`). Image tokens outnumber a prompt's by hundreds to one,
so the attention's projections are applied on the prompt's side wherever they can be: image tokens are multiplied by
8 heads x T prompt tokens, with T about 7, rather than by 128 channels and back. The upscaling is matrix products in token
order, and only logits are brought into image order. Nothing depends on shapes as data, so that it can be exported.
"""

import math
from copy import copy, deepcopy
from typing import Any, NamedTuple, cast

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from .fused_encoder import is_traced

__all__ = ["FusedDecoder", "ImageTokens"]

# Prompts that PyTorch decodes at a time on a CPU: beyond that their image tokens, 4 MB each, leave the cache.
CHUNK = 4


class ImageTokens(NamedTuple):
    """What the decoder needs of an image, for L = rows x columns tokens.

    `tokens` is 1 x rows x columns x 256; `keys` and `queries` are 1 x 8 x 16 x L, `values` 1 x 8 x L x 16, of the first layer's
    attentions.
    """

    tokens: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor


class FusedDecoder(nn.Module):
    """A Sam's prompt encoder and mask decoder, for one input size.

    Features may be those of the whole square, G x G, or of its upper left rows x columns alone, where the image is: then what
    lies under the padding is neither computed nor attended to.
    """

    frequencies: Tensor
    label_embeddings: Tensor
    no_mask: Tensor
    output_tokens: Tensor
    positions: Tensor
    up1_weight: Tensor
    up1_bias: Tensor
    up2_weight: Tensor
    up2_bias: Tensor
    key_positions: Tensor
    query_positions: Tensor
    final_positions: Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        prompts, decoder = cast(Any, deepcopy(sam.prompt_encoder)), cast(Any, deepcopy(sam.mask_decoder))
        self.input_size = int(prompts.input_image_size[0])
        self.grid: tuple[int, int] = tuple(prompts.image_embedding_size)  # G x G
        self.mask_downscaling = prompts.mask_downscaling
        self.layers = decoder.transformer.layers
        self.final_attn = decoder.transformer.final_attn_token_to_image
        self.final_norm = decoder.transformer.norm_final_attn
        self.hypernetworks = decoder.output_hypernetworks_mlps
        self.iou_head = decoder.iou_prediction_head
        up1, self.up_norm, _, up2, _ = decoder.output_upscaling
        # By label: 0 background, 1 foreground, 2 and 3 a box's corners, -1 no point at all.
        embeddings = [*(e.weight for e in prompts.point_embeddings), prompts.not_a_point_embed.weight]
        positions = prompts.get_dense_pe().permute(0, 2, 3, 1)
        constants = {
            "frequencies": prompts.pe_layer.positional_encoding_gaussian_matrix,
            "label_embeddings": torch.cat(embeddings),
            "no_mask": prompts.no_mask_embed.weight[:, :, None, None],
            "output_tokens": torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])[None],
            "positions": positions,
            # As linear layers, each to the 2 x 2 pixels of a token in turn.
            "up1_weight": up1.weight.permute(2, 3, 1, 0).flatten(0, 2),
            "up1_bias": up1.bias.repeat(4),
            "up2_weight": up2.weight.permute(2, 3, 1, 0).flatten(0, 2),
            "up2_bias": up2.bias.repeat(4),
            # What the image's positions add to the scores of the attentions behind the first layer. A bias of the keys
            # shifts all scores of a softmax alike.
            "key_positions": _by_head(positions @ self.layers[1].cross_attn_token_to_image.k_proj.weight.T),
            "query_positions": _by_head(self.layers[1].cross_attn_image_to_token.q_proj(positions)),
            "final_positions": _by_head(positions @ self.final_attn.k_proj.weight.T),
        }
        for name, value in constants.items():
            self.register_buffer(name, value.detach().clone().contiguous())
        self.eval().requires_grad_(False)

    def crop(self, rows: slice, columns: slice) -> "FusedDecoder":
        """Return a decoder that takes the features of these rows and columns of the grid alone; it shares the weights."""
        part = copy(self)
        part._buffers = dict(self._buffers)
        part.positions = self.positions[:, rows, columns]
        for name in ("key_positions", "query_positions", "final_positions"):
            part._buffers[name] = getattr(self, name)[..., rows, columns]
        return part

    def embed_masks(self, masks: Tensor) -> Tensor:
        """Map low-resolution logits, 1 x 1 x 4 rows x 4 columns, to what is added to the features, 1 x 256 x rows x columns."""
        return self.mask_downscaling(masks) - self.no_mask

    def image(self, features: Tensor) -> ImageTokens:
        """Compute what all prompts on an image share, from its features, 1 x 256 x rows x columns."""
        grid = (features + self.no_mask).permute(0, 2, 3, 1)
        rows, columns = grid.shape[1:3]
        tokens = grid.flatten(1, 2)
        placed = tokens + self.positions[:, :rows, :columns].flatten(1, 2)
        first = cast(Any, self.layers)[0]
        to_image, to_token = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        keys = _heads(to_image.k_proj(placed)).mT
        queries = _heads(to_token.q_proj(placed)).mT
        return ImageTokens(grid, keys, _heads(to_image.v_proj(tokens)), queries)

    def embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """Map P x N x 2 points in the padded input's pixels and P x N labels (float) to P x N x 256."""
        angles = (2 * ((points + 0.5) / self.input_size) - 1) @ self.frequencies * (2 * math.pi)
        encoded = torch.cat([angles.sin(), angles.cos()], dim=-1) * (labels >= 0).unsqueeze(-1).to(points.dtype)
        kinds = torch.stack([labels == kind for kind in (0, 1, 2, 3, -1)], dim=-1).to(points.dtype)
        return encoded + kinds @ self.label_embeddings

    def forward(self, image: ImageTokens, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits, P x 4 x 4 rows x 4 columns, and predicted IoUs, P x 4: first the single mask, then three.

        Args:
            image: What `image` returned.
            points: P x N x 2, x before y, in pixels of the resized image; boxes are two points, their corners.
            labels: P x N, as floats: 1 foreground, 0 background, 2 a box's left top and 3 its right bottom, -1 padding, of
                which one follows the points where there is no box.
        """
        if points.device.type != "cpu" or is_traced() or len(points) <= CHUNK:
            return self._decode(image, points, labels)
        chunks = zip(points.split(CHUNK), labels.split(CHUNK), strict=True)
        parts = [self._decode(image, *chunk) for chunk in chunks]
        logits, scores = zip(*parts, strict=True)
        return torch.cat(logits), torch.cat(scores)

    def single_mask(
        self, image: ImageTokens, points: Tensor, labels: Tensor, ambiguous: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return one mask's logits for each prompt, P x 4R x 4C, and its predicted IoU, P: nothing else is upscaled.

        Args:
            image: What `image` returned.
            points: As for `forward`.
            labels: Likewise.
            ambiguous: P, as floats: 1 for the best of three masks by predicted IoU, 0 for the single mask.
            rows: R, as floats: the grid's rows to decode, such as those that the image fills. All are attended to.
            columns: C, likewise.
        """
        if points.device.type != "cpu" or is_traced() or len(points) <= CHUNK:
            return self._decode_single_mask(image, points, labels, ambiguous, rows, columns)
        chunks = zip(points.split(CHUNK), labels.split(CHUNK), ambiguous.split(CHUNK), strict=True)
        parts = [self._decode_single_mask(image, *chunk, rows, columns) for chunk in chunks]
        logits, scores = zip(*parts, strict=True)
        return torch.cat(logits), torch.cat(scores)

    def _decode_single_mask(
        self, image: ImageTokens, points: Tensor, labels: Tensor, ambiguous: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        tokens, outputs = self._attend(image, points, labels)
        scores = self.iou_head(outputs[:, 0])
        # By products, as an exporter fixes the number of prompts of a gather.
        kinds = torch.arange(4, device=scores.device)
        unwanted = (1 - ambiguous[:, None] - (kinds == 0).to(scores.dtype)).abs()  # the single mask, or the three
        chosen = (kinds == (scores - 1e4 * unwanted).argmax(dim=1, keepdim=True)).to(scores.dtype)
        tokens = tokens.index_select(1, rows.long()).index_select(2, columns.long())
        logits = self._masks(tokens, chosen[:, None] @ self._weights(outputs))
        return logits[:, 0], (chosen * scores).sum(dim=1)

    def _decode(self, image: ImageTokens, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        tokens, outputs = self._attend(image, points, labels)
        return self._masks(tokens, self._weights(outputs)), self.iou_head(outputs[:, 0])

    def _attend(self, image: ImageTokens, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return, after all attentions, P x rows x columns x 256 image tokens, and P x 5 x 256 of IoU and masks."""
        sparse = self.embed_points(points, labels)
        prompt = torch.cat([self.output_tokens.expand(sparse.shape[0], -1, -1), sparse], dim=1)
        first, second = cast(Any, self.layers)
        rows, columns = image.tokens.shape[1:3]
        grid_tokens = image.tokens.flatten(1, 2)

        def here(positions: Tensor) -> Tensor:
            return positions[..., :rows, :columns].flatten(-2)

        x = first.norm1(first.self_attn(prompt, prompt, prompt))
        attn = first.cross_attn_token_to_image
        q = _heads(attn.q_proj(x + prompt)) / _scale(attn)
        x = first.norm2(x + _join(attn, (q @ image.keys).softmax(dim=-1) @ image.values))
        x = first.norm3(x + first.mlp(x))
        attn = first.cross_attn_image_to_token
        k = _heads(attn.k_proj(x + prompt)) / _scale(attn)
        tokens = _to_tokens(attn, grid_tokens, k @ image.queries, x)
        tokens = first.norm4(tokens)

        y = x + prompt
        x = second.norm1(x + second.self_attn(y, y, x))
        x = second.norm2(x + _from_tokens(second.cross_attn_token_to_image, x + prompt, tokens, here(self.key_positions)))
        x = second.norm3(x + second.mlp(x))
        attn = second.cross_attn_image_to_token
        k = _heads(attn.k_proj(x + prompt)) / _scale(attn)
        scores = _project(k, attn.q_proj, tokens) + k @ here(self.query_positions)
        tokens = second.norm4(_to_tokens(attn, tokens, scores, x))

        # What becomes of the points' own tokens is of no use.
        x, prompt = x[:, :5], prompt[:, :5]
        x = self.final_norm(x + _from_tokens(self.final_attn, x + prompt, tokens, here(self.final_positions)))
        return tokens.unflatten(1, (rows, columns)), x

    def _weights(self, outputs: Tensor) -> Tensor:
        """Return the weights of the upscaled channels for each of four masks, P x 4 x 32."""
        return torch.stack([mlp(outputs[:, i + 1]) for i, mlp in enumerate(self.hypernetworks)], dim=1)

    def _masks(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Upscale P x rows x columns tokens twice by 2 x 2, and weigh their channels for M masks."""
        norm = cast(Any, self.up_norm)
        rows, columns = tokens.shape[1:3]
        x = F.linear(tokens.flatten(1, 2), self.up1_weight, self.up1_bias).unflatten(-1, (4, -1))
        x = F.gelu(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
        x = F.gelu(F.linear(x, self.up2_weight, self.up2_bias)).unflatten(-1, (4, -1)).flatten(1, 3)
        logits = weights @ x.mT
        # Each token's 2 x 2 pixels, and each of those's, to their place.
        logits = logits.unflatten(-1, (rows, columns, 2, 2, 2, 2)).permute(0, 1, 2, 4, 6, 3, 5, 7)
        return logits.flatten(5, 7).flatten(2, 4)


def _heads(x: Tensor) -> Tensor:
    """B x N x C to B x 8 x N x C/8."""
    return x.unflatten(-1, (8, -1)).transpose(1, 2)


def _by_head(x: Tensor) -> Tensor:
    """1 x G x G x C to 1 x 8 x C/8 x G x G."""
    return x.unflatten(-1, (8, -1)).permute(0, 3, 4, 1, 2)


def _scale(attn: nn.Module) -> float:
    return math.sqrt(cast(Any, attn).internal_dim // 8)


def _join(attn: nn.Module, x: Tensor) -> Tensor:
    """The attention's last projection, of P x 8 x T x C/8."""
    return cast(Any, attn).out_proj(x.transpose(1, 2).flatten(2))


def _project(x: Tensor, proj: nn.Linear, tokens: Tensor) -> Tensor:
    """Return x's products with the projected image tokens, without projecting these: P x 8 x T x L."""
    weight = proj.weight.unflatten(0, (8, -1))
    return ((x @ weight).flatten(1, 2) @ tokens.mT).unflatten(1, (8, -1))


def _from_tokens(attn: nn.Module, x: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
    """Attention from prompt tokens to image tokens, P x T x 256."""
    layers = cast(Any, attn)
    q = _heads(layers.q_proj(x)) / _scale(attn)
    weights = (_project(q, layers.k_proj, tokens) + q @ positions).softmax(dim=-1)
    gathered = (weights.flatten(1, 2) @ tokens).unflatten(1, (8, -1))
    values = gathered @ layers.v_proj.weight.unflatten(0, (8, -1)).mT + layers.v_proj.bias.unflatten(0, (8, 1, -1))
    return _join(attn, values)


def _to_tokens(attn: nn.Module, tokens: Tensor, scores: Tensor, x: Tensor) -> Tensor:
    """Add attention from image tokens to prompt tokens, from its scores P x 8 x T x L, to the image tokens, P x L x 256."""
    layers = cast(Any, attn)
    values = _heads(layers.v_proj(x)) @ layers.out_proj.weight.unflatten(1, (8, -1)).permute(1, 2, 0)
    weights = scores.softmax(dim=2).flatten(1, 2)
    return tokens + layers.out_proj.bias + weights.mT @ values.flatten(1, 2)
