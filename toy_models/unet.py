"""A compact class-conditional U-Net for 64x64 images, small enough to be trained on a CPU.

What makes it cheap: the image enters as 32x32 places of 12 numbers (2x2 pixels each), one block a
level, one group in every normalisation, attention only at 16x16 and 8x8. What makes it work at this
size: a linear path from input to output whose gain depends on the noise level, so that the narrow
first layers need not carry the noise itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guidance_edu.attention import SelfAttention, as_many
from guidance_edu.denoisers import Preconditioned
from toy_models.conditioning import add_class

AUGMENTATIONS = 3  # flip, horizontal and vertical shift: told to the network while it trains


def zeroed(layer: nn.Module) -> nn.Module:
    """Return a layer whose weights start at zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class NoiseEmbedding(nn.Module):
    """The clock of the network: a noise feature becomes a vector.

    Shapes:  noise [n]; result [n, width].
    """

    def __init__(self, width: int):
        super().__init__()
        frequencies = torch.exp(torch.linspace(math.log(0.5), math.log(32.0), 32))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.first, self.second = nn.Linear(64, width), nn.Linear(width, width)

    def forward(self, noise: Tensor) -> Tensor:
        """Return the embedding."""
        angles = noise[:, None] * self.frequencies
        return self.second(F.silu(self.first(torch.cat([angles.sin(), angles.cos()], dim=1))))


class Block(nn.Module):
    """A residual block: two convolutions, scaled and shifted by the embedding; then attention.

    Shapes:  x [n, inputs, h, w]; embedding [n, width]; result [n, outputs, h, w]. Where the
             attention is forked, the result has twice as many samples.
    """

    def __init__(self, inputs: int, outputs: int, width: int, heads: int = 0, name: str = ""):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, inputs), nn.GroupNorm(1, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.modulation = nn.Linear(width, 2 * outputs)
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1)
        self.norm3 = nn.GroupNorm(1, outputs) if heads else None
        self.attention = SelfAttention(outputs, heads, name) if heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the block's output."""
        scale, shift = self.modulation(as_many(embedding, x))[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        x = self.shortcut(x) + h
        if self.attention is None:
            return x
        n, channels, height, breadth = x.shape
        tokens = self.norm3(x).permute(0, 2, 3, 1).reshape(n, height * breadth, channels)
        mixed = self.attention(tokens, (height, breadth))
        mixed = mixed.reshape(-1, height, breadth, channels).permute(0, 3, 1, 2)
        return as_many(x, mixed) + mixed


class UNet(nn.Module):
    """The raw network F of an image denoiser.

    Shapes:  x, result [n, 3, 64, 64]; noise [n]; condition None or [n] long, where ``classes`` is
             the null label of a network that has one; augmentation None or [n, 3].
    Units:   x at unit scale, as :class:`guidance_edu.Preconditioned` provides it.
    Limits:  at the start the result is 0. ``bf16=True`` computes in bfloat16 and returns float32.
    Errors:  ValueError on another image size, a label out of range, ``condition=None`` where the
             network was trained without a null label, or a condition where it knows no classes.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (32, 64, 192),
        blocks: tuple[int, ...] = (1, 1, 1),
        heads: tuple[int, ...] = (0, 1, 3),
        classes: int = 10,
        null: bool = True,
        width: int = 192,
        bf16: bool = False,
    ):
        super().__init__()
        self.classes, self.bf16 = classes, bf16
        self.null_label = classes if null and classes else None
        self.noise = NoiseEmbedding(width)
        self.stem = nn.Conv2d(12, channels[0], 3, padding=1)
        self.down, self.encoder = nn.ModuleList(), nn.ModuleList()
        now, size = channels[0], 32
        for level, wide in enumerate(channels):
            self.down.append(nn.Conv2d(now, wide, 3, stride=2, padding=1) if level else None)
            names = [f"enc.{size >> level}.{k}" for k in range(blocks[level])]
            self.encoder.append(
                nn.ModuleList(Block(wide, wide, width, heads[level], name) for name in names)
            )
            now = wide
        self.middle = Block(now, now, width, heads[-1], f"mid.{size >> len(channels) - 1}")
        self.decoder, self.up = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(channels))):
            names = [f"dec.{size >> level}.{k}" for k in range(blocks[level])]
            self.decoder.append(
                nn.ModuleList(Block(now, now, width, heads[level], name) for name in names)
            )
            self.up.append(nn.Conv2d(now, channels[level - 1], 1) if level else None)
            now = channels[max(level - 1, 0)]
        self.norm, self.out = nn.GroupNorm(1, now), zeroed(nn.Conv2d(now, 12, 3, padding=1))
        self.linear, self.gain = nn.Conv2d(12, 24, 5, padding=2), zeroed(nn.Linear(width, 36))
        self.augmentation = zeroed(nn.Linear(AUGMENTATIONS, width, bias=False))
        # Last, so that networks with and without classes start from the same other weights.
        self.label = nn.Embedding(classes + 1, width) if classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.3)

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        condition: Tensor | None = None,
        augmentation: Tensor | None = None,
    ) -> Tensor:
        """Return the raw prediction."""
        if x.dim() != 4 or x.shape[1:] != (3, 64, 64):
            raise ValueError(f"expected x of shape [n, 3, 64, 64], got {list(x.shape)}")
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            return self._network(x, self.embed(noise, condition, augmentation)).to(x.dtype)

    def embed(
        self, noise: Tensor, condition: Tensor | None, augmentation: Tensor | None = None
    ) -> Tensor:
        """Return what every block is told: the noise level and the class. Shape [n, width]."""
        embedding = self.noise(noise)
        embedding = add_class(embedding, self.label, condition, self.classes, self.null_label)
        if augmentation is not None:
            embedding = embedding + self.augmentation(augmentation)
        return F.silu(embedding)

    def _network(self, x: Tensor, embedding: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        h, passed = self.stem(patches), []
        for down, blocks in zip(self.down, self.encoder, strict=True):
            h = h if down is None else down(h)
            for block in blocks:
                h = block(h, embedding)
                passed.append(h)
        h = self.middle(h, embedding)
        for blocks, up in zip(self.decoder, self.up, strict=True):
            for block in blocks:
                h = block((h + as_many(passed.pop(), h)) * 0.5**0.5, embedding)
            h = h if up is None else F.interpolate(up(h), scale_factor=2.0, mode="nearest")
        h = self.out(F.silu(self.norm(h)))
        # Three linear answers, each with a gain that the noise level sets.
        paths = torch.cat([self.linear(patches), patches], dim=1)
        paths = (paths * self.gain(embedding)[:, :, None, None]).unflatten(1, (3, 12)).sum(1)
        return F.pixel_shuffle(h + as_many(paths, h), 2)


def image_denoiser(**options) -> Preconditioned:
    """Return an untrained image denoiser: a :class:`UNet` in EDM preconditioning.

    Shapes:  D(x [n, 3, 64, 64], sigma float or [n], condition) -> [n, 3, 64, 64].
    Errors:  those of :class:`UNet`.
    """
    return Preconditioned(UNet(**options), sigma_data=0.5)
