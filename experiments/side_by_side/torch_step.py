"""Stage 3's training step in plain PyTorch, written as the reference writes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adaperceiver_jax.convert.torch_twin import AdaPerceiver


class Stage3:
    """Learns a teacher's logits at every granularity and after every block (Algorithm 3).

    One pass under the block mask; a sample's width is a mask on its hidden units; every readout is
    a write of its own, with keys and values projected from the latents it sees. The update is AdamW
    with clipping and EMA.
    """

    def __init__(
        self,
        model: AdaPerceiver,
        mean: Sequence[float],
        std: Sequence[float],
        lr: float = 5e-4,
        weight_decay: float = 0.003,
        clip: float = 3.0,
        ema: float = 0.9998,
    ):
        self.model, self.clip, self.decay = model.train(), clip, ema
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
        self.parameters = list(model.parameters())
        self.ema = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr, weight_decay=weight_decay)

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
        output = m.output_latents.token.expand(len(images), 1, -1)
        hidden = torch.tensor([int(w * c["ffn_ratio"]) for w in widths])
        used = torch.arange(m.blocks[0].ffn.fc1.out_features) < hidden[:, None, None]
        target = F.log_softmax(teacher, -1)

        def readout(z: Tensor, tokens: int) -> Tensor:
            written = m.write_head(output, z[:, :tokens], angles_k=angles[:tokens])
            scores = F.log_softmax(m.output_adapter(written)[:, 0], -1)
            return F.kl_div(scores, target, reduction="batchmean", log_target=True)

        patches = m.patch_embed(images)
        z = m.process_latents.token.expand(len(images), n, -1)
        z = m.read_head(z, patches, angles_q=angles)
        mask, depth_loss = m.mask(n), torch.zeros(())
        for l, (block, tokens) in enumerate(zip(m.blocks, readout_tokens, strict=True), 1):
            y = block.norm1(z)
            z = z + block.ls1(block.attn(y, y, angles, angles, mask))
            ffn = block.ffn
            z = z + block.ls2(ffn.fc2(ffn.act(ffn.fc1(block.norm2(z))) * used))
            depth_loss = depth_loss + l * readout(z, tokens)
        depth = len(m.blocks)
        token_loss = torch.stack([readout(z, t) for t in c["mask_token_grans"]]).mean()
        return token_loss + depth_loss / (depth * (depth + 1) / 2)

    def update(
        self, pixels: Tensor, teacher: Tensor, widths: Sequence[int], readout_tokens: Sequence[int]
    ) -> float:
        """One step; gives its loss."""
        loss = self.loss(pixels, teacher, widths, readout_tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.parameters, 1 - self.decay)
        return float(loss.detach())
