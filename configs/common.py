"""Parts that configs share: keys and defaults, the values of the paper, the part after a name."""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from adaperceiver_jax.data.scenes import CLASSES
from adaperceiver_jax.tasks.make import RunConfig
from adaperceiver_jax.train.settings import keys_of


def base() -> ConfigDict:
    """All keys of a run, at the defaults of `RunConfig`."""
    return _section(RunConfig())


def _section(settings: Any) -> ConfigDict:
    values = ConfigDict()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            value = _section(value)
        elif value is None:
            value = placeholder(float if "float" in str(field.type) else int)
        values[field.name] = value
    return values


def argument(config: ConfigDict, arg: str, runlocal: Callable[[ConfigDict], None]) -> ConfigDict:
    """Applies what stands behind a config's name: 'runlocal', and key=value for any key.

    'runlocal,length=20 steps' -> the small run, 20 steps of it. A comma within a value needs
    quotes or brackets around it.
    """
    changes: dict[str, Any] = {}
    for part in _parts(arg):
        name, given, text = (piece.strip() for piece in part.partition("="))
        if name == "runlocal" and not given:
            runlocal(config)
            continue
        if not given:
            raise ValueError(f"argument {part!r}: must be 'runlocal' or key=value")
        changes[name] = text
    for name, text in changes.items():
        set_key(config, name, text)
    return config.lock()


def choice(arg: str, name: str, values: tuple[str, ...]) -> tuple[str | None, str]:
    """Takes name=value out of an argument: the value, one of `values` (None: not given), and the
    rest of the argument."""
    found, rest = None, []
    for part in _parts(arg):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key != name:
            rest.append(part)
            continue
        if value not in values:
            raise ValueError(f"argument {name}={value!r}: must be one of {', '.join(values)}")
        found = value
    return found, ",".join(rest)


def _parts(arg: str) -> list[str]:
    """An argument cut at its commas, but for those within brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in arg:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts if arg else []


def set_key(config: ConfigDict, name: str, text: str) -> None:
    """Sets the key 'a.b' from text; ValueError if there is no such key or it is of another type."""
    *sections, key = name.split(".")
    place: Any = config
    for section in sections:
        place = place.get(section) if isinstance(place, ConfigDict) else None
    if not isinstance(place, ConfigDict) or key not in place:
        near = difflib.get_close_matches(name, list(keys_of(RunConfig)), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(config))}"
        raise ValueError(f"argument {name!r}: there is no such key; {hint}")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    try:
        place[key] = value
    except TypeError as error:
        raise ValueError(f"argument {name}={text!r}: {error}") from error


def paper() -> ConfigDict:
    """Settings of stages 1 to 3 and `features`: ImageNet-12k, SOAP, batch 4096, bfloat16."""
    config = base()
    config.task = "distill"
    config.batch_size = 4096
    config.model.num_classes = 11821
    config.data.update(source="array_record:imagenet12k", workers=-1, threads=1)
    config.augment.update(crop=(0.08, 1.0), rand_augment=2, magnitude=15, bins=31)
    config.mixing.mixup = 1.0
    config.teacher.path = "timm/vit_huge_patch14_clip_224.laion2b_ft_in12k"
    config.vit.update(
        embed_dim=1280,
        depth=32,
        num_heads=16,
        patch_size=14,
        num_classes=11821,
        pre_norm=True,
        norm_epsilon=1e-5,
    )
    config.optimizer.update(
        name="soap",
        lr=1e-3,
        weight_decay=0.003,
        clip=3.0,
        precondition_frequency=100,
        start_preconditioning_step=500,
        max_preconditioner_dim=8192,
    )
    config.schedule.update(name="cosine", warmup="3000 steps", warmup_lr=1e-6, min_lr=1e-5)
    config.evaluation.update(every="1 epochs", batch_size=2048)
    config.evaluation.sub_networks = ((128, 832, 21), (32, 832, 21), (256, 416, 21), (256, 832, 7))
    # A multiple of every precondition_frequency: a save right after a refresh waits for none.
    config.checkpoint.update(every="900 steps")
    return config


def tiny(config: ConfigDict) -> None:
    """Makes a config small: a tiny model, rendered images, some 60 steps on 2 cores."""
    config.length = "60 steps"
    config.batch_size = 32
    config.init_from = ""
    config.log_every = 10
    scenes(config, size=32, train=2048, validation=256)
    config.model.update(
        embed_dim=48,
        num_heads=3,
        depth=4,
        max_latent_tokens=16,
        token_granularities=(2, 4, 8, 16),
        widths=(24, 36, 48),
        image_size=32,
        patch_size=4,
    )
    if config.model.output_feat_dim is not None:
        config.model.output_feat_dim = 32
    config.vit.update(
        embed_dim=32, depth=2, num_heads=2, patch_size=4, image_size=32, pre_norm=False
    )
    config.init_scale = 6.0
    config.compute.update(dtype="float32", remat=False)
    config.teacher.path = "made-up"
    config.optimizer.update(
        precondition_frequency=10, start_preconditioning_step=10, max_preconditioner_dim=512
    )
    config.schedule.warmup = "10%"
    config.evaluation.update(every="50%", batch_size=128, sub_networks=((8, 36, 2),))
    config.checkpoint.every = "25%"


def scenes(config: ConfigDict, size: int, train: int, validation: int) -> None:
    """Trains on rendered images, `train` of them, of size x size pixels."""
    config.data.update(
        source="scenes",
        validation="",
        dir="",
        image_size=size,
        train_count=train,
        validation_count=validation,
        workers=0,
        threads=4,
    )
    config.augment.update(crop=(), rand_augment=0)
    config.model.num_classes = config.vit.num_classes = len(CLASSES)
    config.images.update(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
