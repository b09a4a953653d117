"""The models once more, in PyTorch: small, plain, and under the reference's parameter names.

`twin(config)` builds from what a config.json says, `load_state_dict(state, strict=True)` takes
exported weights, so whatever was written can be run by something that is not JAX. Written from the
model's definition; it shares no code with the package. Images are NCHW, for Fourier maps and ViTs
of the config's own size.
"""

# mypy: ignore-errors
# (an attribute of an nn.Module is a Tensor or a Module to mypy)

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Config = Mapping[str, Any]
"""The content of a config.json."""
ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu}


# Layers.


class FFN(nn.Module):
    """fc2(act(fc1(x))), or with a gate fc2(act(gate(x)) * fc1(x))."""

    def __init__(self, features: int, hidden: int, out: int, kind: str = "mlp", act: str = "gelu"):
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        if kind == "swiglu":
            self.gate = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, out)
        self.act = ACTIVATIONS[act]

    def forward(self, x: Tensor, hidden: int | None = None) -> Tensor:
        """Uses the first `hidden` units only."""
        y = self.fc1(x)
        y = self.act(self.gate(x)) * y if hasattr(self, "gate") else self.act(y)
        return F.linear(y[..., :hidden], self.fc2.weight[:, :hidden], self.fc2.bias)


class Patches(nn.Module):
    """A convolution whose stride is its size: (B, C, H, W) -> (B, patches, D), rows first."""

    def __init__(self, channels: int, patch: int, features: int, bias: bool = True):
        super().__init__()
        self.proj = nn.Conv2d(channels, features, patch, patch, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Scale(nn.Module):
    """LayerScale."""

    def __init__(self, features: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def scales(dim: int, scaled: Any) -> tuple[nn.Module, nn.Module]:
    """The LayerScales of a block's attention and FFN, if it has any."""
    return (Scale(dim), Scale(dim)) if scaled else (nn.Identity(), nn.Identity())


# AdaPerceiver.


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """RoPE: turns neighbouring pairs of x (B, heads, N, d) by angles (N, d / 2)."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # torch.compile makes no kernels for complex numbers
        (even, odd), cos, sin = pairs.unbind(-1), angles.cos(), angles.sin()
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    else:  # four times as fast as the above where it is not compiled, on a CPU
        turns = torch.polar(torch.ones_like(angles), angles)
        turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turns)
    return turned.flatten(-2).type_as(x)


class Attention(nn.Module):
    """Separate q, k, v and proj; either side may be turned by RoPE."""

    def __init__(self, c: Config):
        super().__init__()
        dim, self.heads = c["embed_dim"], c["num_heads"]
        self.q, self.k, self.v = (nn.Linear(dim, dim, c["qkv_bias"]) for _ in range(3))
        self.proj = nn.Linear(dim, dim, c["proj_bias"])

    def forward(self, sink, source, angles_q=None, angles_k=None, mask=None) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.q, sink), (self.k, source), (self.v, source))
        )
        q = q if angles_q is None else turn(q, angles_q)
        k = k if angles_k is None else turn(k, angles_k)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(y.transpose(1, 2).flatten(-2))


class CrossAttention(nn.Module):
    """Reads a source into a sink, each with its norm."""

    def __init__(self, c: Config):
        super().__init__()
        self.snk_norm = nn.LayerNorm(c["embed_dim"], 1e-6)
        self.src_norm = nn.LayerNorm(c["embed_dim"], 1e-6)
        self.cattn = Attention(c)

    def forward(self, sink, source, angles_q=None, angles_k=None) -> Tensor:
        return sink + self.cattn(self.snk_norm(sink), self.src_norm(source), angles_q, angles_k)


class Block(nn.Module):
    """z + ls1 attention, z + ls2 FFN; the FFN may be narrower than `ffn_ratio` says."""

    def __init__(self, c: Config):
        super().__init__()
        dim = c["embed_dim"]
        hidden = int((c.get("max_width") or dim) * c["ffn_ratio"])
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn = Attention(c)
        self.ffn = FFN(dim, hidden, dim, c["ffn_layer"], c["act_layer"])
        self.ls1, self.ls2 = scales(dim, c["ls_init_values"])

    def forward(self, z: Tensor, angles: Tensor, mask: Tensor | None, hidden: int | None) -> Tensor:
        y = self.norm1(z)
        z = z + self.ls1(self.attn(y, y, angles, angles, mask))
        return z + self.ls2(self.ffn(self.norm2(z), hidden))


def fourier_maps(size: int, bands: int) -> Tensor:
    """(1, 2 (2 bands + 1), size, size): rows, then columns; sines, cosines, the coordinate."""
    x = torch.linspace(-1, 1, size)
    angles = math.pi * torch.linspace(1, size / 2, bands)[:, None] * x
    line = torch.cat([angles.sin(), angles.cos(), x[None]])  # (2 bands + 1, size)
    rows = line[:, :, None].expand(-1, size, size)
    return torch.cat([rows, rows.transpose(1, 2)])[None]


class PatchEmbed(nn.Module):
    """Patches plus positions; with the embed FFN LayerNorm and FFN after them."""

    def __init__(self, c: Config):
        super().__init__()
        dim, size = c["embed_dim"], c["img_size"]
        self.bands, self.size, self.patch = c.get("fourier_bands"), size, c["patch_size"]
        maps = 2 * (2 * self.bands + 1) if self.bands else 0
        self.embed = Patches(c["in_channels"] + maps, c["patch_size"], dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // c["patch_size"]) ** 2, dim))
        if c["use_embed_ffn"]:
            hidden = int(dim * c["ffn_ratio"])
            self.norm = nn.LayerNorm(dim, 1e-6)
            self.ffn = FFN(dim, hidden, dim, c["ffn_layer"], c["act_layer"])

    def positions(self, height: int, width: int) -> Tensor:
        """The table, or for images of another size its bicubic resampling."""
        grid = (height // self.patch, width // self.patch)
        side = round(self.pos_embed.shape[1] ** 0.5)
        if grid == (side, side):
            return self.pos_embed
        table = self.pos_embed.transpose(1, 2).unflatten(-1, (side, side))
        table = F.interpolate(table, grid, mode="bicubic", antialias=True)
        return table.flatten(2).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        if self.bands:
            maps = fourier_maps(self.size, self.bands).expand(len(images), -1, -1, -1)
            images = torch.cat([images, maps], dim=1)
        x = self.embed(images) + self.positions(*images.shape[-2:])
        return self.ffn(self.norm(x)) if hasattr(self, "ffn") else x


class OutputAdapter(nn.Module):
    """A linear layer, or LayerNorm and FFN."""

    def __init__(self, c: Config, out: int, use_ffn: bool):
        super().__init__()
        dim = c["embed_dim"]
        if use_ffn:
            self.norm = nn.LayerNorm(dim, 1e-6)
            self.ffn = FFN(dim, int(dim * c["ffn_ratio"]), out, c["ffn_layer"], c["act_layer"])
        else:
            self.norm, self.ffn = nn.Identity(), nn.Linear(dim, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.norm(x))


class AdaPerceiver(nn.Module):
    """Any of its outputs: {'logits': (B, classes), 'features': (B, patches, features)}."""

    def __init__(self, c: Config):
        super().__init__()
        self.c, dim = c, c["embed_dim"]
        self.patch_embed = PatchEmbed(c)
        self.process_latents = nn.ParameterDict({"token": torch.zeros(dim)})
        self.read_head = CrossAttention(c)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["depth"]))
        classes, features = c.get("num_classes"), c.get("output_feat_dim")
        self.streams: dict[str, str] = {}  # what is predicted -> the suffix of its modules
        if classes:
            tokens = nn.ParameterDict({"token": torch.zeros(1, dim)})
            self._add("logits", "", tokens, classes)
        if features:
            tokens = nn.ModuleDict({"proj": nn.Linear(dim, dim)})
            self._add("features", "_feat" if classes else "", tokens, features)

    def _add(self, name: str, suffix: str, tokens: nn.Module, out: int) -> None:
        use_ffn = bool(suffix) or self.c["use_output_ffn"]
        self.streams[name] = suffix
        setattr(self, f"output_latents{suffix}", tokens)
        setattr(self, f"write_head{suffix}", CrossAttention(self.c))
        setattr(self, f"output_adapter{suffix}", OutputAdapter(self.c, out, use_ffn))

    def mask(self, n: int) -> Tensor | None:
        """(N, N), True where a latent (row) sees another."""
        if self.c["block_mask"] == "none" or self.c["attn_layer"] == "full":
            return None
        if self.c["block_mask"] == "causal":
            return torch.ones(n, n, dtype=torch.bool).tril()
        bounds = [g for g in self.c["mask_token_grans"] if g < n] + [n]
        seen = [next(g for g in bounds if g > i) for i in range(n)]
        return torch.arange(n)[None] < torch.tensor(seen)[:, None]

    def forward(self, images, num_tokens=None, width=None, depth=None) -> dict[str, Tensor]:
        c, n = self.c, num_tokens or self.c["max_latent_tokens"]
        dim = c["embed_dim"] // c["num_heads"]
        scale = c.get("rope_scale") or max(1.0, n / c["max_latent_tokens"])
        frequencies = c["rope_theta"] ** (-torch.arange(0, dim, 2) / dim) / scale
        angles = torch.outer(torch.arange(n, dtype=torch.float32), frequencies)
        patches = self.patch_embed(images)
        z = self.process_latents.token.expand(len(images), n, -1)
        z = self.read_head(z, patches, angles_q=angles)
        hidden = None if width is None else int(width * c["ffn_ratio"])
        mask = self.mask(n)
        for block in self.blocks[:depth]:
            z = block(z, angles, mask, hidden)
        found = {}
        for name, suffix in self.streams.items():
            latents = getattr(self, f"output_latents{suffix}")
            if name == "logits":
                o = latents.token.expand(len(images), 1, -1)
            else:
                o = latents.proj(patches)
            o = getattr(self, f"write_head{suffix}")(o, z, angles_k=angles)
            found[name] = getattr(self, f"output_adapter{suffix}")(o)
        if "logits" in found:
            found["logits"] = found["logits"][:, 0]
        return found


# Policies.


class MixerBlock(nn.Module):
    """An MLP across patches, then one across channels."""

    def __init__(self, patches: int, dim: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.mlp_tokens = FFN(patches, dim // 2, patches)
        self.mlp_channels = FFN(dim, 4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class Heads(nn.Module):
    """The scores of every axis' choices."""

    def __init__(self, c: Config, features: int, bias: bool):
        super().__init__()
        self.head_tokens = nn.Linear(features, c["token_choices"], bias)
        self.head_mat_dim = nn.Linear(features, c["width_choices"], bias)
        self.head_depth = nn.Linear(features, c["depth_choices"], bias)

    def scores(self, h: Tensor) -> dict[str, Tensor]:
        heads = {"token": self.head_tokens, "width": self.head_mat_dim, "depth": self.head_depth}
        return {f"{axis}_logits": head(h) for axis, head in heads.items()}


class Policy(Heads):
    """Patches (B, patches, D) to scores."""

    def __init__(self, c: Config):
        dim, patches = c["embed_dim"], c["num_patches"]
        super().__init__(c, dim, bias=False)
        self.mixer_block, self.mixer_block_2 = MixerBlock(patches, dim), MixerBlock(patches, dim)
        first, second = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.fuse = nn.Sequential(nn.LayerNorm(dim), first, nn.GELU(), second, nn.GELU())

    def forward(self, patches: Tensor) -> dict[str, Tensor]:
        return self.scores(self.fuse(self.mixer_block_2(self.mixer_block(patches)).mean(1)))


class Peek(Heads):
    """Log-probabilities (B, classes) to scores."""

    def __init__(self, c: Config):
        hidden = c["hidden"]
        super().__init__(c, hidden, bias=True)
        self.fc1, self.fc2 = nn.Linear(c["num_classes"], hidden), nn.Linear(hidden, hidden)

    def forward(self, log_probs: Tensor) -> dict[str, Tensor]:
        return self.scores(F.gelu(self.fc2(F.gelu(self.fc1(log_probs.clamp(min=-20.0) / 4)))))


# ViTs.


class ViTBlock(nn.Module):
    """Pre-norm block with a fused qkv."""

    def __init__(self, c: Config):
        super().__init__()
        dim, eps = c["embed_dim"], c["norm_epsilon"]
        self.heads = c["num_heads"]
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        qkv, proj = nn.Linear(dim, 3 * dim, c["qkv_bias"]), nn.Linear(dim, dim)
        self.attn = nn.ModuleDict({"qkv": qkv, "proj": proj})
        self.mlp = FFN(dim, int(dim * c["mlp_ratio"]), dim)
        self.ls1, self.ls2 = scales(dim, c["layer_scale"])

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.attn.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        y = F.scaled_dot_product_attention(*qkv.movedim(2, 0).transpose(2, 3))
        x = x + self.ls1(self.attn.proj(y.transpose(1, 2).flatten(-2)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """timm's ViT: {'logits', 'features', 'prefix'}, the latter two patches and the tokens before
    them, after the norm before pooling."""

    def __init__(self, c: Config):
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


# Segmentation and depth, on an AdaPerceiver or a ViT.


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

    def __init__(self, c: Config, backbone: nn.Module):
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


KINDS: dict[str, type[nn.Module]] = {
    "": AdaPerceiver,
    "PolicyNetwork": Policy,
    "PeekNetwork": Peek,
    "ViT": ViT,
}


def twin(config: Config) -> nn.Module:
    """The model of a config.json, its weights to be replaced by load_state_dict."""
    if "backbone" in config:
        return Dense(config, twin(config["backbone"])).eval()
    return KINDS[config.get("model", "")](config).eval()
