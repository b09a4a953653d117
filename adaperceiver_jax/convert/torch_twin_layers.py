"""The layers that the PyTorch twins have in common."""

# mypy: ignore-errors
# (an attribute of an nn.Module is a Tensor or a Module to mypy)

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu}


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


class Parameters(nn.Module):
    """A module that only holds one tensor, or one projection, by its name."""

    def __init__(self, **parts: Any):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
