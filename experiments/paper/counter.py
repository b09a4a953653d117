"""The reference's FLOP counter, rebuilt: it counts multiply-adds (no factor 2) of layers alone, not
attention's products, and adds each operation once per module that it is called within."""

from __future__ import annotations

import dataclasses
import re

import adaperceiver_jax as ap

LEVELS = dict(q=2, k=2, v=3, proj=3, ffn=3, cross=3, patch=4, adapter=4, classes=3)
"""Number of modules around each of an AdaPerceiver's layers."""


@dataclasses.dataclass(frozen=True)
class Vit:
    """Sizes of a ViT, and how deep the reference nests its blocks' layers."""

    dim: int
    depth: int
    hidden: int
    """Units of the FFN."""
    patch: int
    patches: int
    extra: int = 1
    """Tokens that are no patches."""
    block: int = 6
    """Modules around a block's linear layers; its patch convolution has 2 less, its head 3."""
    patch_nesting: int = 4
    head_nesting: int = 3
    classes: int = 1000

    def linear(self, block: int = 1, patch: int = 1, head: int = 1) -> float:
        """Giga multiply-adds of linear layers, each times a weight."""
        d = self.dim
        blocks = self.depth * (self.patches + self.extra) * (4 * d * d + 2 * d * self.hidden)
        convolution = self.patches * 3 * self.patch**2 * d
        return (block * blocks + patch * convolution + head * self.classes * d) / 1e9

    def attention(self) -> float:
        """Giga multiply-adds of the products of queries, keys and values."""
        return 2 * self.depth * (self.patches + self.extra) ** 2 * self.dim / 1e9

    def counted(self) -> float:
        """Forward GFLOPs as the reference counts them."""
        return self.linear(self.block, self.patch_nesting, self.head_nesting)

    def counted_backward(self) -> float:
        """Backward GFLOPs, twice the forward's but for the convolution, which counts once: pixels
        ask for no gradient."""
        return self.linear(2 * self.block, self.patch_nesting, 2 * self.head_nesting)


def vit(model: str) -> Vit:
    """The ViT that a row of the paper's table 5 names."""
    name, _, setting = model.partition(" ")
    found = re.search(r"\d+", setting)
    number = int(found.group()) if found else 0
    if name.startswith("HydraViT"):
        small = dict(block=4, patch_nesting=3, head_nesting=2)
        return Vit(number, 12, 4 * number, 16, 196, **small)
    dim, depth = (1024, 24) if "-L" in name else (768, 12)
    if name.startswith("MatViT"):
        more = dict(block=7, patch_nesting=5, head_nesting=4)
        return Vit(dim, depth, 4 * number, 16, 576 if "384" in name else 196, **more)
    if name.startswith("Flex"):
        return Vit(dim, depth, 4 * dim, number, (240 // number) ** 2)
    plain = {
        "DeiT-Ti/16": Vit(192, 12, 768, 16, 196),
        "ViT-H/14": Vit(1280, 32, 5120, 14, 256),
        "SoViT-150M/16": Vit(832, 21, 2176, 16, 256),
        **{f"DeiT{n}-S/16": Vit(384, 12, 1536, 16, 196) for n in ("", "3")},
        **{f"DeiT{n}-B/16": Vit(768, 12, 3072, 16, 196) for n in ("", "3")},
        "DeiT3-L/16": Vit(1024, 24, 4096, 16, 196),
    }
    if name not in plain:
        raise ValueError(f"model={model!r}: unknown here; must be a row of table_5.csv")
    return plain[name]


def counted(
    c: ap.AdaPerceiverConfig, tokens: int, width: int, size: tuple[int, int], dense: bool
) -> float:
    """Forward GFLOPs of an AdaPerceiver as the reference counts them."""
    d, n = c.embed_dim, LEVELS
    patches = size[0] * size[1] // c.patch_size**2
    outputs = patches if dense else 1
    inputs = patches * d * (c.in_channels * c.patch_size**2 * n["patch"])
    inputs += patches * 2 * d * c.ffn_hidden * n["adapter"]
    cross = 2 * d * d * (patches + tokens + tokens + outputs) * n["cross"]
    attention = sum(n[name] for name in ("q", "k", "v", "proj")) * d * d
    ffn = 2 * d * c.hidden_units(width) * n["ffn"]
    blocks = c.depth * tokens * (attention + ffn)
    if not dense:
        return (inputs + cross + blocks + d * (c.num_classes or 0) * n["classes"]) / 1e9
    ends = outputs * d * d * n["cross"]
    ends += outputs * c.ffn_hidden * (d + (c.output_feat_dim or 0)) * n["adapter"]
    return (inputs + cross + blocks + ends) / 1e9


def classifier(tokens: int, depth: int = 21) -> float:
    """The same of the paper's classifier, of whole width, on 224 pixels with patches of 16."""
    config = ap.AdaPerceiverConfig(patch_size=16, depth=depth)
    return counted(config, tokens, config.full_width, (224, 224), dense=False)
