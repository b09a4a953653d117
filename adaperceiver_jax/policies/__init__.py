"""Choosing a sub-network for each image, and serving each image its own."""

from adaperceiver_jax.policies.budgets import Baseline, Budgets, EarlyExit, Optimal, Policy
from adaperceiver_jax.policies.learned import Learned, Peek
from adaperceiver_jax.policies.serve import Served, Server

__all__ = [
    "Baseline",
    "Budgets",
    "EarlyExit",
    "Learned",
    "Optimal",
    "Peek",
    "Policy",
    "Served",
    "Server",
]
