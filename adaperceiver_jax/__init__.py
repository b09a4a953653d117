"""AdaPerceiver in JAX: a vision transformer with tokens, depth and width chosen at run time."""

from adaperceiver_jax import policies
from adaperceiver_jax.convert.hub import from_pretrained, save_pretrained
from adaperceiver_jax.convert.names import params_from_torch, params_to_torch
from adaperceiver_jax.convert.timm import TimmModel, timm_model, timm_models
from adaperceiver_jax.data.preprocess import Preprocessing
from adaperceiver_jax.evaluate.flops import Flops, exit_flops, flops
from adaperceiver_jax.evaluate.points import Point, plan
from adaperceiver_jax.models.adaperceiver import AdaPerceiver, Output, Readouts
from adaperceiver_jax.models.config import AdaPerceiverConfig
from adaperceiver_jax.models.dense import (
    DepthConfig,
    DepthModel,
    SegmentationConfig,
    SegmentationModel,
)
from adaperceiver_jax.models.early_exit import EarlyExit, early_exit
from adaperceiver_jax.models.extract import extract, extract_config
from adaperceiver_jax.models.params import count_params, init_params, param_shapes
from adaperceiver_jax.models.policy import PeekConfig, PeekNetwork, PolicyConfig, PolicyNetwork
from adaperceiver_jax.models.vit import ViT, ViTConfig
from adaperceiver_jax.optim.soap import soap

__all__ = [
    "AdaPerceiver",
    "AdaPerceiverConfig",
    "DepthConfig",
    "DepthModel",
    "EarlyExit",
    "Flops",
    "Output",
    "PeekConfig",
    "PeekNetwork",
    "Point",
    "PolicyConfig",
    "PolicyNetwork",
    "Preprocessing",
    "Readouts",
    "SegmentationConfig",
    "SegmentationModel",
    "TimmModel",
    "ViT",
    "ViTConfig",
    "count_params",
    "early_exit",
    "exit_flops",
    "extract",
    "extract_config",
    "flops",
    "from_pretrained",
    "init_params",
    "param_shapes",
    "params_from_torch",
    "params_to_torch",
    "plan",
    "policies",
    "save_pretrained",
    "soap",
    "timm_model",
    "timm_models",
]
__version__ = "0.1.0"
