"""Stage 3's training step in plain PyTorch, written as the reference writes it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adaperceiver_jax.convert.torch_twin import AdaPerceiver


class Stage3:
    """Learns a teacher's logits at every granularity and after every block (Algorithm 3).

    One pass under the block mask; a sample's width is a mask on its hidden units; every readout is
    a write of its own, with keys and values projected from the latents it sees. The update is
    AdamW, fused, with clipping and EMA. `compiled` compiles a block and a readout, each once for
    all of them.
    """

    def __init__(
        self,
        model: AdaPerceiver,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        lr: float = 5e-4,
        weight_decay: float = 0.003,
        clip: float = 3.0,
        ema: float = 0.9998,
        autocast: Any = contextlib.nullcontext(),  # noqa: B008 (it holds nothing)
        compiled: bool = False,
    ):
        self.model, self.clip, self.decay, self.autocast = model.train(), clip, ema, autocast
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
        self.parameters = list(model.parameters())
        self.ema = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(  # PyTorch's quickest: one pass over all
            self.parameters, lr, weight_decay=weight_decay, fused=True
        )
        self.block, self.readout = block, self.read
        if compiled:
            self.block = torch.compile(block, dynamic=False)
            self.readout = torch.compile(self.read)

    def read(self, z: Tensor, angles: Tensor, target: Tensor) -> Tensor:
        """The loss of one readout of latents (B, t, D) against log-probabilities (B, classes)."""
        m = self.model
        output = m.output_latents.token.expand(len(z), 1, -1)
        written = m.write_head(output, z, angles_k=angles)
        scores = F.log_softmax(m.output_adapter(written)[:, 0], -1)
        return F.kl_div(scores, target, reduction="batchmean", log_target=True)

    def loss(
        self, pixels: Tensor, teacher: Tensor, widths: Sequence[int], readout_tokens: Sequence[int]
    ) -> Tensor:
        """pixels (B, H, W, 3) uint8, teacher's logits (B, classes), a width a sample, a
        granularity a block."""
        c, m = self.model.c, self.model
        n, head_dim = c["max_latent_tokens"], c["embed_dim"] // c["num_heads"]
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        frequencies = c["rope_theta"] ** (-torch.arange(0, head_dim, 2) / head_dim)
        angles = torch.outer(torch.arange(n, dtype=torch.float32), frequencies)
        hidden = torch.tensor([int(w * c["ffn_ratio"]) for w in widths])
        used = torch.arange(m.blocks[0].ffn.fc1.out_features) < hidden[:, None, None]
        target = F.log_softmax(teacher, -1)

        patches = m.patch_embed(images)
        z = m.process_latents.token.expand(len(images), n, -1)
        z = m.read_head(z, patches, angles_q=angles)
        mask, depth_loss = m.mask(n), torch.zeros(())
        for l, (each, tokens) in enumerate(zip(m.blocks, readout_tokens, strict=True), 1):
            z = self.block(each, z, angles, mask, used)
            depth_loss = depth_loss + l * self.readout(z[:, :tokens], angles[:tokens], target)
        depth = len(m.blocks)
        by_token = [self.readout(z[:, :t], angles[:t], target) for t in c["mask_token_grans"]]
        return torch.stack(by_token).mean() + depth_loss / (depth * (depth + 1) / 2)

    def update(
        self, pixels: Tensor, teacher: Tensor, widths: Sequence[int], readout_tokens: Sequence[int]
    ) -> float:
        """One step; gives its loss."""
        with self.autocast:
            loss = self.loss(pixels, teacher, widths, readout_tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.parameters, 1 - self.decay)
        return float(loss.detach())


def block(each: Any, z: Tensor, angles: Tensor, mask: Tensor | None, used: Tensor) -> Tensor:
    """A block whose hidden units are those that a sample uses (B, 1, hidden)."""
    y = each.norm1(z)
    z = z + each.ls1(each.attn(y, y, angles, angles, mask))
    ffn = each.ffn
    return z + each.ls2(ffn.fc2(ffn.act(ffn.fc1(each.norm2(z))) * used))
