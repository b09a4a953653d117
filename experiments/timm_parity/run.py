"""Every timm ViT of the registry against timm itself: sizes, outputs, pre-processing.

pip install torch timm torchvision                 # the versions tried: see docs/timm.md
python -m experiments.timm_parity.run              # some 10 minutes on 2 cores, 8 GB

For every name, what timm publishes (classes, mean, std, crop, interpolation) is compared with
the registry's. For every architecture (names differ only in what they were trained on), timm makes
the model with made-up weights, and its state dict, config and one image go through this package:
largest difference of logits and patch features, as a part of the largest entry. For every
pre-processing, one image of 500 x 375 goes through timm's transform and ours. Exits with 1 where
outputs differ by more than 2e-5, pixels by more than one of 255, or anything else at all.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

import jax
import numpy as np
import torch
from PIL import Image

import adaperceiver_jax as ap

BAR = 2e-5
PIXEL = 1.01 / 255


def stand_in_operators() -> None:
    """Declares what a torchvision without compiled operators misses when it is imported."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_library"] = library  # operators live as long as it does


def made_up(model: torch.nn.Module) -> None:
    """Weights that make every layer matter."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and "weight" in name:
            noise = noise / parameter[0].numel() ** 0.5
        elif "norm" in name or "gamma" in name:
            noise = (1 + 0.2 * noise) if name.endswith(("weight", "gamma")) else 0.2 * noise
        else:
            noise = 0.2 * noise
        parameter.data.copy_(noise)


def compare_outputs(name: str) -> tuple[int, float, float]:
    """Parameters, and the largest difference of logits and of patch features."""
    import timm

    known = ap.timm_model(name)
    theirs = timm.create_model(
        name.partition(".")[0], pretrained=False, num_classes=known.config.num_classes or 0
    ).eval()
    made_up(theirs)
    model = ap.ViT(known.config)
    state = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    params = ap.params_from_torch(model, state)
    size = known.config.image_size
    image = np.random.default_rng(0).standard_normal((1, size, size, 3)).astype(np.float32)
    ours = jax.jit(model.apply)({"params": params}, image)
    with torch.inference_mode():
        tokens = theirs.forward_features(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
        logits = theirs.forward_head(tokens)

    def difference(got: jax.Array, want: torch.Tensor) -> float:
        return float(np.abs(np.asarray(got) - want.numpy()).max() / want.abs().max())

    of_features = difference(ours.features, tokens[:, theirs.num_prefix_tokens :])
    of_logits = 0.0 if ours.logits is None else difference(ours.logits, logits)
    return ap.count_params(params), of_logits, of_features


def differing_settings(name: str) -> list[str]:
    """Settings that timm publishes otherwise than the registry has them."""
    import timm

    known, theirs = ap.timm_model(name), timm.get_pretrained_cfg(name)
    p = known.preprocessing
    pairs = {
        "classes": (known.config.num_classes or 0, theirs.num_classes),
        "image size": (p.image_size, theirs.input_size[1]),
        "crop": (p.crop, theirs.crop_pct),
        "squash": (p.squash, theirs.crop_mode == "squash"),
        "interpolation": (p.interpolation, theirs.interpolation),
        "mean": (p.mean, tuple(theirs.mean)),
        "std": (p.std, tuple(theirs.std)),
        "hub": (known.hub_id, theirs.hf_hub_id + ("" if name in theirs.hf_hub_id else name)),
    }
    return [f"{what}: {ours} here, {other} there" for what, (ours, other) in pairs.items()
            if ours != other]  # fmt: skip


def compare_pixels(name: str) -> float:
    """Largest difference of a prepared image, in pixels' own units, 0 to 1."""
    import timm.data

    pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    smooth = Image.fromarray(pixels).resize((50, 40)).resize((500, 375))
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    theirs = timm.data.create_transform(**config)(smooth).numpy().transpose(1, 2, 0)
    preprocessing = ap.timm_model(name).preprocessing
    return float(np.abs((preprocessing(smooth) - theirs) * preprocessing.std).max())


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="architectures that begin so (all)")
    options = parser.parse_args(arguments)
    stand_in_operators()
    names = [name for name in ap.timm_models() if name.startswith(options.only)]
    bad = [f"{name}: {what}" for name in names for what in differing_settings(name)]
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("timm", "torch", "jax"))
    print(f"{len(names)} names, {len(bad)} settings that differ ({versions})\n")
    prepared = {str(ap.timm_model(name).preprocessing): name for name in names}
    worst = max(compare_pixels(name) for name in prepared.values())
    print(f"{len(prepared)} ways to prepare an image: to {255 * worst:.2f} of 255\n")
    if worst > PIXEL:
        bad.append(f"pixels differ by {255 * worst:.1f} of 255")
    print("| architecture | parameters | logits | features |\n|---|---|---|---|")
    with_head_last = sorted(names, key=lambda name: ap.timm_model(name).config.num_classes or 0)
    of_architecture = {name.partition(".")[0]: name for name in with_head_last}
    for name in dict(sorted(of_architecture.items())).values():
        count, logits, features = compare_outputs(name)
        architecture = name.partition(".")[0]
        shown = f"{logits:.1e}" if logits else "-"
        print(f"| {architecture} | {count / 1e6:.1f} M | {shown} | {features:.1e} |", flush=True)
        if not max(logits, features) <= BAR:
            bad.append(f"{architecture}: outputs differ")
        jax.clear_caches()
    print("\n".join(["", *bad]))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
