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

from adaperceiver_jax.convert.torch_twin_dense import Dense, ViT
from adaperceiver_jax.convert.torch_twin_layers import FFN, Parameters, Patches, Scale


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

    def __init__(self, c: Mapping[str, Any]):
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

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.snk_norm = nn.LayerNorm(c["embed_dim"], 1e-6)
        self.src_norm = nn.LayerNorm(c["embed_dim"], 1e-6)
        self.cattn = Attention(c)

    def forward(self, sink, source, angles_q=None, angles_k=None) -> Tensor:
        return sink + self.cattn(self.snk_norm(sink), self.src_norm(source), angles_q, angles_k)


class Block(nn.Module):
    """z + ls1 attention, z + ls2 FFN; the FFN may be narrower than `ffn_ratio` says."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        dim = c["embed_dim"]
        hidden = int((c.get("max_width") or dim) * c["ffn_ratio"])
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn = Attention(c)
        self.ffn = FFN(dim, hidden, dim, c["ffn_layer"], c["act_layer"])
        scaled = c["ls_init_values"]
        self.ls1, self.ls2 = (Scale(dim) if scaled else nn.Identity() for _ in range(2))

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

    def __init__(self, c: Mapping[str, Any]):
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

    def __init__(self, c: Mapping[str, Any], out: int, use_ffn: bool):
        super().__init__()
        dim = c["embed_dim"]
        self.norm = nn.LayerNorm(dim, 1e-6) if use_ffn else nn.Identity()
        hidden = int(dim * c["ffn_ratio"])
        self.ffn = (
            FFN(dim, hidden, out, c["ffn_layer"], c["act_layer"])
            if use_ffn
            else nn.Linear(dim, out)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.norm(x))


class AdaPerceiver(nn.Module):
    """Of any output: {'logits': (B, classes), 'features': (B, patches, features)}."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.c, dim = c, c["embed_dim"]
        self.patch_embed = PatchEmbed(c)
        self.process_latents = Parameters(token=nn.Parameter(torch.zeros(dim)))
        self.read_head = CrossAttention(c)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["depth"]))
        classes, features = c.get("num_classes"), c.get("output_feat_dim")
        self.streams: dict[str, str] = {}  # what is predicted -> the suffix of its modules
        if classes:
            self._add("logits", "", Parameters(token=nn.Parameter(torch.zeros(1, dim))), classes)
        if features:
            tokens = Parameters(proj=nn.Linear(dim, dim))
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
            o = (
                latents.token.expand(len(images), 1, -1)
                if name == "logits"
                else latents.proj(patches)
            )
            o = getattr(self, f"write_head{suffix}")(o, z, angles_k=angles)
            found[name] = getattr(self, f"output_adapter{suffix}")(o)
        if "logits" in found:
            found["logits"] = found["logits"][:, 0]
        return found


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


class Policy(nn.Module):
    """Patches (B, patches, D) to the scores of every axis' choices."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        dim, patches = c["embed_dim"], c["num_patches"]
        self.mixer_block, self.mixer_block_2 = MixerBlock(patches, dim), MixerBlock(patches, dim)
        first, second = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.fuse = nn.Sequential(nn.LayerNorm(dim), first, nn.GELU(), second, nn.GELU())
        self.head_tokens = nn.Linear(dim, c["token_choices"], bias=False)
        self.head_mat_dim = nn.Linear(dim, c["width_choices"], bias=False)
        self.head_depth = nn.Linear(dim, c["depth_choices"], bias=False)

    def forward(self, patches: Tensor) -> dict[str, Tensor]:
        h = self.fuse(self.mixer_block_2(self.mixer_block(patches)).mean(1))
        heads = {"token": self.head_tokens, "width": self.head_mat_dim, "depth": self.head_depth}
        return {f"{axis}_logits": head(h) for axis, head in heads.items()}


class Peek(nn.Module):
    """Log-probabilities (B, classes) to the scores of every axis' choices."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        hidden = c["hidden"]
        self.fc1, self.fc2 = nn.Linear(c["num_classes"], hidden), nn.Linear(hidden, hidden)
        self.head_tokens = nn.Linear(hidden, c["token_choices"])
        self.head_mat_dim = nn.Linear(hidden, c["width_choices"])
        self.head_depth = nn.Linear(hidden, c["depth_choices"])

    def forward(self, log_probs: Tensor) -> dict[str, Tensor]:
        gelu = nn.functional.gelu
        h = gelu(self.fc2(gelu(self.fc1(log_probs.clamp(min=-20.0) / 4))))
        heads = {"token": self.head_tokens, "width": self.head_mat_dim, "depth": self.head_depth}
        return {f"{axis}_logits": head(h) for axis, head in heads.items()}


KINDS: dict[str, type[nn.Module]] = {
    "": AdaPerceiver,
    "PolicyNetwork": Policy,
    "PeekNetwork": Peek,
    "ViT": ViT,
}


def twin(config: Mapping[str, Any]) -> nn.Module:
    """The model of a config.json, with made-up weights until load_state_dict."""
    if "backbone" in config:
        return Dense(config, twin(config["backbone"])).eval()
    return KINDS[config.get("model", "")](config).eval()
