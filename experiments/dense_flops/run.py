"""The FLOPs columns of the paper's dense tables, and where its own figures come from.

python -m experiments.dense_flops.run > docs/dense_flops.md      # seconds; needs no weights
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import adaperceiver_jax as ap
from experiments.paper.counter import Vit, counted
from experiments.paper.shared import markdown

TOKENS = (32, 64, 96, 128, 192, 256, 512)
WIDTHS = (416, 624, 832)
VITS = {
    "ViT-B/16": "vit_base_patch16_clip_224.laion2b_ft_in12k",
    "ViT-L/14": "vit_large_patch14_clip_224.laion2b_ft_in12k",
    "ViT-H/14": "vit_huge_patch14_clip_224.laion2b_ft_in12k",
}
SIZES = {"ADE20K": {14: (518, 518), 16: (512, 512)}, "NYUv2": {14: (448, 602), 16: (448, 608)}}
BACKBONE = ap.AdaPerceiverConfig(num_classes=None, output_feat_dim=1280, use_output_ffn=True)


def dense(task: str, backbone: ap.AdaPerceiverConfig | ap.ViTConfig, vit: bool = False):
    """The task's model with its linear head."""
    extra = dict(class_token=True, mlp=True) if vit else {}
    if task == "ADE20K":
        return ap.SegmentationConfig(backbone=backbone, num_classes=150, **extra)
    return ap.DepthConfig(backbone=backbone, **extra)


def vit_config(name: str) -> ap.ViTConfig:
    return dataclasses.replace(ap.timm_model(VITS[name]).config, num_classes=None)


def table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    cells = [[f"{x:.1f}" if isinstance(x, float) else str(x) for x in line] for line in lines]
    print(markdown(head, cells) + "\n")


def task_table(task: str) -> None:
    """Prints ours, of every configuration of the paper, and the ratio to ViT-H/14."""
    size = SIZES[task][14]
    huge = ap.flops(dense(task, vit_config("ViT-H/14"), True), image_size=size).encoder
    lines: list[Sequence[object]] = []
    for t, w in itertools.product(TOKENS, WIDTHS):
        cost = ap.flops(dense(task, BACKBONE), t, w, image_size=size)
        both = cost.encoder + cost.by_part["write"] + cost.by_part["head"]
        amounts = cost.encoder / 1e9, cost.head / 1e9, huge / cost.encoder, huge / both
        lines.append((f"AdaPerceiver, {size[0]} x {size[1]}", t, w, *amounts))
    for name in VITS:
        config = vit_config(name)
        at = SIZES[task][config.patch_size]
        cost = ap.flops(dense(task, config, True), image_size=at)
        amounts = cost.encoder / 1e9, cost.head / 1e9, *(huge / cost.encoder,) * 2
        lines.append((f"{name}, {at[0]} x {at[1]}", "-", "-", *amounts))
    print(f"## {task}: {size[0] * size[1] // 14**2} output tokens, depth 21\n")
    columns = "model", "tokens", "width", "encoder GFLOPs", "head GFLOPs"
    ratios = "ViT-H/14's encoder is x times", "writing and output adapter counted in"
    table((*columns, *ratios), lines)


def encoder(task: str, tokens: int, depth: int | None = None) -> float:
    """GFLOPs of an AdaPerceiver's encoder."""
    size = SIZES[task][14]
    return ap.flops(dense(task, BACKBONE), tokens, None, depth, image_size=size).encoder / 1e9


def depth_table() -> None:
    """Prints the encoder over depths: the x axes of figures 11 and 13."""
    lines = [(t, *(encoder("ADE20K", t, l) for l in (1, 7, 14, 21))) for t in TOKENS[:-1]]
    print("## Over depths: encoder GFLOPs at 518 x 518, width 832\n")
    table(("tokens", "depth 1", "depth 7", "depth 14", "depth 21"), lines)


def untrained_table() -> None:
    """Prints token counts between and beyond the trained: the x axes of figures 12 and 14."""
    tokens = (8, 16, 24, 48, 80, 112, 160, 224, 320, 384, 512, 768, 1024)
    lines = [(task, *(encoder(task, t) for t in tokens)) for task in SIZES]
    print("## Token counts that are not trained: encoder GFLOPs, width 832, depth 21\n")
    table(("", *(f"{t} tokens" for t in tokens)), lines)


def ratio_table() -> None:
    """Prints both encoders by the reference's counter."""
    lines = []
    for task, sizes in SIZES.items():
        size = sizes[14]
        shape = dict(patch=14, patches=size[0] * size[1] // 14**2, classes=11821)
        nested = dict(block=5, patch_nesting=3, head_nesting=2)
        huge = Vit(1280, 32, 5120, **shape, **nested).counted()
        for t in TOKENS[:-1]:
            found = counted(BACKBONE, t, 832, size, dense=True)
            lines.append((task, t, huge, found, huge / found))
    print("## About 26 times\n")
    table(("task", "tokens", "ViT-H/14, so counted", "AdaPerceiver, so counted", "ratio"), lines)


INTRODUCTION = """\
# FLOPs of the dense tasks

Printed by `python -m experiments.dense_flops.run`; no weights are needed. Ours count each
multiply-add of every matrix product as 2, attention's included, only what is computed (under the
block mask, queries times the keys they see); XLA's own count agrees within 2%
(`tests/evaluate/test_flops.py`). The encoder ends with the last block. The head is all behind it:
writing into the output tokens, the output adapter, the linear head, resizing to the image; of a ViT
the MLP over its tokens, the joined class token's channels and the same linear head.
"""

EXPLANATION = """\
The paper says that an AdaPerceiver matches ViT-H/14 with "about 26 x" fewer encoder FLOPs. What we
have of it does not say at how many tokens (its tables 2 and 3, with mIoU and RMSE, are not in it).

- **By our count, ViT-H/14's encoder costs 23 x an AdaPerceiver's at 256 tokens and 40 x at 128**,
  writing and output adapter left out. With them counted in, since the ViT needs neither: 19 x and
  29 x.
- **The paper's figures come from another counter.** The reference adds each operation up once for
  every module it is called within, so that a layer's weight is how deeply it is nested; it counts a
  multiply-add as 1 and leaves attention's products out. Rebuilt, that gives every figure of tables
  5 and 6, to a rounding ([paper_tables.md](paper_tables.md)).
- **The same counter on the dense models, above, gives 27 x at 256 tokens**, nearest to 26 of all
  trained counts; which pair the paper means, and what makes up the rest, we could not find out. It
  is more than our 19 x because nesting weighs the ViT's layers (5) more than the AdaPerceiver's (2
  to 4).
- The reference evaluates without the block mask; at 256 tokens that is 2% more FLOPs than with it.
"""


def main() -> None:
    """Prints the page."""
    print(INTRODUCTION)
    for task in SIZES:
        task_table(task)
    depth_table()
    untrained_table()
    ratio_table()
    print(EXPLANATION, end="")


if __name__ == "__main__":
    main()
