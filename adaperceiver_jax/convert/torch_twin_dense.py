"""ViTs, and segmentation and depth on them or on an AdaPerceiver, in PyTorch."""

# mypy: ignore-errors
# (an attribute of an nn.Module is a Tensor or a Module to mypy)

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaperceiver_jax.convert.torch_twin_layers import FFN, Parameters, Patches, Scale


class ViTBlock(nn.Module):
    """Pre-norm block with a fused qkv."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        dim, eps = c["embed_dim"], c["norm_epsilon"]
        self.heads = c["num_heads"]
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attn = Parameters(qkv=nn.Linear(dim, 3 * dim, c["qkv_bias"]), proj=nn.Linear(dim, dim))
        self.mlp = FFN(dim, int(dim * c["mlp_ratio"]), dim)
        scaled = c["layer_scale"]
        self.ls1, self.ls2 = (Scale(dim) if scaled else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.attn.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        y = F.scaled_dot_product_attention(*qkv.movedim(2, 0).transpose(2, 3))
        x = x + self.ls1(self.attn.proj(y.transpose(1, 2).flatten(-2)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """timm's ViT: {'logits', 'features', 'prefix'}, the latter two patches and the tokens before
    them, after the norm before pooling."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.c, dim = c, c["embed_dim"]
        self.patch_embed = Patches(c["in_channels"], c["patch_size"], dim, not c["pre_norm"])
        self.prefix = int(c["class_token"]) + c["reg_tokens"]
        if c["class_token"]:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if c["reg_tokens"]:
            self.reg_token = nn.Parameter(torch.zeros(1, c["reg_tokens"], dim))
        count = (c["image_size"] // c["patch_size"]) ** 2
        count += 0 if c["no_embed_class"] else self.prefix
        self.pos_embed = nn.Parameter(torch.zeros(1, count, dim))
        norm = nn.LayerNorm(dim, c["norm_epsilon"])
        self.norm_pre = nn.LayerNorm(dim, c["norm_epsilon"]) if c["pre_norm"] else nn.Identity()
        self.blocks = nn.Sequential(*(ViTBlock(c) for _ in range(c["depth"])))
        after = c["global_pool"] == "avg" if c["fc_norm"] is None else c["fc_norm"]
        self.norm, self.fc_norm = (nn.Identity(), norm) if after else (norm, nn.Identity())
        self.head = nn.Linear(dim, c["num_classes"]) if c["num_classes"] else None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        names = ("cls_token", "reg_token")
        tokens = [getattr(self, n).expand(len(images), -1, -1) for n in names if hasattr(self, n)]
        x = self.patch_embed(images)
        if self.c["no_embed_class"]:
            x = torch.cat([*tokens, x + self.pos_embed], dim=1)
        else:
            x = torch.cat([*tokens, x], dim=1) + self.pos_embed
        x = self.norm(self.blocks(self.norm_pre(x)))
        features = x[:, self.prefix :]
        found = {"features": features}
        if self.prefix:
            found["prefix"] = x[:, : self.prefix]
        if self.head is not None:
            pooled = x[:, 0] if self.c["global_pool"] == "token" else features.mean(1)
            found["logits"] = self.head(self.fc_norm(pooled))
        return found


class LinearSegmentation(nn.Module):
    """Logits of every patch from its features alone."""

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.bn = nn.LayerNorm(features, 1e-6)
        self.conv_seg = nn.Conv2d(features, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, classes, h, w)."""
        return self.conv_seg(self.bn(x.movedim(1, -1)).movedim(-1, 1))


class MaskTransformer(nn.Module):
    """Patches and a token a class through blocks; the cosine of both is the patch's score."""

    def __init__(self, features: int, classes: int, dim: int, depth: int):
        super().__init__()
        block = dict(embed_dim=dim, num_heads=max(1, dim // 64), mlp_ratio=4, norm_epsilon=1e-6)
        block |= dict(qkv_bias=True, layer_scale=None)
        self.proj_dec = nn.Linear(features, dim)
        self.cls_emb = nn.Parameter(torch.zeros(1, classes, dim))
        self.blocks = nn.Sequential(*(ViTBlock(block) for _ in range(depth)))
        self.decoder_norm, self.mask_norm = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(classes, 1e-6)
        self.proj_patch = nn.Linear(dim, dim, bias=False)
        self.proj_classes = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, classes, h, w)."""
        grid, patches = x.shape[-2:], self.proj_dec(x.flatten(2).transpose(1, 2))
        tokens = torch.cat([patches, self.cls_emb.expand(len(x), -1, -1)], dim=1)
        tokens = self.decoder_norm(self.blocks(tokens))
        count = patches.shape[1]
        patches = unit(self.proj_patch(tokens[:, :count]))
        classes = unit(self.proj_classes(tokens[:, count:]))
        masks = self.mask_norm(patches @ classes.transpose(1, 2))
        return masks.transpose(1, 2).unflatten(-1, grid)


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1, but for those shorter than 1e-6."""
    return x / x.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()


class LinearDepth(nn.Module):
    """The expectation of depth's bins, four times as fine as the patches."""

    def __init__(self, features: int, bins: int, nearest: float, farthest: float):
        super().__init__()
        self.conv_seg = nn.Conv2d(features, bins, 3, padding=1)
        self.range = (nearest, farthest)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 1, 4h, 4w)."""
        x = F.interpolate(x, scale_factor=4, mode="bilinear")
        weights = F.relu(self.conv_seg(x)) + 0.1
        bins = torch.linspace(*self.range, weights.shape[1])
        return torch.einsum("bkhw,k->bhw", weights / weights.sum(1, keepdim=True), bins)[:, None]


class Dense(nn.Module):
    """Segmentation or depth on the features of an AdaPerceiver or a ViT."""

    def __init__(self, c: Mapping[str, Any], backbone: nn.Module):
        super().__init__()
        self.backbone, dim = backbone, c["backbone"]["embed_dim"]
        self.patch, self.class_token = c["backbone"]["patch_size"], c.get("class_token", False)
        if c.get("mlp", False):
            self.mlp = FFN(dim, dim, dim)
        on_vit = c["backbone"].get("model") == "ViT"
        features = dim * (1 + self.class_token) if on_vit else c["backbone"]["output_feat_dim"]
        self.output = "depth" if c["model"] == "DepthModel" else "logits"
        if self.output == "depth":
            self.head = LinearDepth(features, c["bins"], c["min_depth"], c["max_depth"])
        elif c.get("head", "linear") == "linear":
            self.head = LinearSegmentation(features, c["num_classes"])
        else:
            decoder = c["decoder_features"], c["decoder_depth"]
            self.head = MaskTransformer(features, c["num_classes"], *decoder)

    def features(self, images: Tensor, **sub_network: Any) -> Tensor:
        """(B, patches, C)."""
        out = self.backbone(images, **sub_network)
        if hasattr(self, "mlp"):
            out = {name: self.mlp(out[name]) for name in ("features", "prefix") if name in out}
        if not self.class_token:
            return out["features"]
        token = out["prefix"][:, :1].expand_as(out["features"])
        return torch.cat([token, out["features"]], dim=-1)

    def forward(self, images: Tensor, **sub_network: Any) -> dict[str, Tensor]:
        size = images.shape[-2:]
        x = self.features(images, **sub_network).transpose(1, 2)
        maps = self.head(x.unflatten(-1, (size[0] // self.patch, size[1] // self.patch)))
        maps = F.interpolate(maps, size, mode="bilinear")
        return {self.output: maps[:, 0] if self.output == "depth" else maps.movedim(1, -1)}
