"""Which sub-network an image gets, and serving each image its own."""

from adaperceiver_jax.policies.budgets import Budgets, Policy
from adaperceiver_jax.policies.fixed import Baseline, EarlyExit, Optimal
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
