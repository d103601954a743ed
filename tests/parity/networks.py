"""Small networks of diffusers with random weights, for the tests beside this file."""

import torch
from diffusers import UNet2DConditionModel, UNet2DModel

LABELS = 5  # of which the last stands for "no class"
TEXT, WIDTH = 6, 16  # an embedded text: six words of sixteen numbers


def stirred(make, **options):
    """Return a network whose every weight is random: zeros would hide what is behind them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make(norm_num_groups=4, **options).eval().requires_grad_(False)
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return network


def with_classes(**options):
    """Return a U-Net with classes and attention at two sizes, whose layers take feature maps."""
    defaults = {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "sample_size": 16,
        "num_class_embeds": LABELS,
        "mid_block_scale_factor": 2.0,
    }
    return stirred(UNet2DModel, **defaults | options)


def with_text(**options):
    """Return a U-Net told an embedded text, with self- and cross-attention on tokens, 4 heads."""
    defaults = {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "in_channels": 4,
        "out_channels": 4,
        "sample_size": 16,
    }
    return stirred(UNet2DConditionModel, **defaults | options)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def level(scheduler, t):
    """Return alpha of a training step, and sigma / alpha: the noise level of the book."""
    share = scheduler.alphas_cumprod[t].double()
    return share.sqrt().item(), ((1 - share) / share).sqrt().item()
