"""Learning from a teacher's logits, and its patch features, at every readout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from adaperceiver_jax.evaluate.flops import flops
from adaperceiver_jax.losses.distillation import distillation_kl
from adaperceiver_jax.models.vit import ViT
from adaperceiver_jax.tasks.once_for_all import OnceForAll, Targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill(OnceForAll):
    """KL to the teacher's logits; with `settings.features`, its features too."""

    teacher: ViT
    """Images (B, H, W, C) to `.logits` and `.features`."""
    teacher_params: Callable[[], Any] = dataclasses.field(compare=False, repr=False)
    """Gives its parameters; called once the run is known to be sound."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixing.label_smoothing:
            raise ValueError(
                f"config.mixing.label_smoothing={self.mixing.label_smoothing}: distillation learns "
                "from a teacher's logits, not from labels; leave it at 0"
            )
        student, teacher = self.model.config, self.teacher.config
        if student.num_classes != teacher.num_classes:
            raise ValueError(
                f"config.model.num_classes={student.num_classes}: the teacher has "
                f"{teacher.num_classes} classes; both must be the same"
            )
        if not self.settings.features:
            return
        if student.output_feat_dim != teacher.embed_dim:
            raise ValueError(
                f"config.model.output_feat_dim={student.output_feat_dim}: the teacher's features "
                f"have {teacher.embed_dim} channels; both must be the same"
            )
        patches = [c.image_size // c.patch_size for c in (student, teacher)]
        if patches[0] != patches[1]:
            raise ValueError(
                f"config.model.patch_size={student.patch_size}: features are learned patch by "
                f"patch, but the student has {patches[0]} patches a side, the teacher {patches[1]}"
            )

    def constants(self) -> Any:
        """The teacher's parameters, kernels in its dtype: they are cast to it at every use, so it
        is the same teacher, in less memory."""

        def narrow(path: tuple, leaf: jax.Array) -> jax.Array:
            return leaf.astype(self.teacher.dtype) if path[-1].key == "kernel" else leaf

        return jax.tree_util.tree_map_with_path(narrow, self.teacher_params())

    def targets(self, constants: Any, samples: Mapping[str, jax.Array]) -> Targets:
        out: Any = self.teacher.apply({"params": constants}, samples["images"])
        features = out.features.astype(jnp.float32) if self.settings.features else None
        return Targets(labels=out.logits.astype(jnp.float32), features=features)

    def logit_loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return distillation_kl(logits, labels, self.settings.temperature)

    def train_flops(self, trained: Any) -> float:
        """The student's, and the teacher's forward."""
        size = self.model.config.image_size
        return super().train_flops(trained) + flops(self.teacher.config, image_size=size).total
