"""The UNet that predicts the noise in latents, given the time step and the prompt.

Ronneberger et al. 2015, arXiv:1505.04597, with the residual blocks of DDPM and the spatial transformers of latent
diffusion (Rombach et al. 2021, arXiv:2112.10752): four levels of 320, 640, 1280 and 1280 channels in SD v1 and 2, three
in XL, whose transformers have more blocks (Podell et al. 2023, arXiv:2307.01952). On the way down every result is kept; on
the way up each residual block reads one of them beside its input, last kept first.

N images, H × W latent pixels, C channels (last), E time channels (4 · first level), S words of context width X.
What images, prompts or steps have in common is computed once: see conditioning.py.
"""
import itertools
from collections.abc import Sequence

import numpy as np

from npdiffusion import kernels
from npdiffusion.kernels.arrays import Array
from npdiffusion.models import expected
from npdiffusion.models.conditioning import Conditioning, repeated
from npdiffusion.models.configs import UNetConfig
from npdiffusion.models.layers import Conv2d, GroupNorm, Linear
from npdiffusion.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from npdiffusion.models.transformer import Transformer2DModel
from npdiffusion.models.tree import Module


class TimestepEmbedding(Module):
    """Two layers on the sinusoidal embedding      (N, C) → (N, E)

    A model that guidance is distilled into also takes the embedded guidance scale, (N, P) or (1, P).
    """
    def __init__(self, channels: int, time_channels: int, condition: int | None = None) -> None:
        if condition is not None:
            self.cond_proj = Linear(condition, channels, bias=False)
        self.linear_1 = Linear(channels, time_channels)
        self.linear_2 = Linear(time_channels, time_channels)

    def __call__(self, x: Array, condition: Array | None = None) -> Array:
        if condition is not None:
            x = x + self.cond_proj(condition)
        return self.linear_2(kernels.silu(self.linear_1(x)))


class DownBlock(Module):
    """Residual blocks, each followed by a transformer at levels that have them, then half the size.

    Returns the result and what the way up will want: the outputs of all layers, (N, H, W, C_out) and (N, H/2, W/2, C_out).
    """
    def __init__(self, config: UNetConfig, level: int, in_channels: int) -> None:
        channels = config.block_out_channels[level]
        self.resnets = [_resnet(config, in_channels if i == 0 else channels, channels)
                        for i in range(config.layers_per_block)]
        self.attentions = _transformers(config, level, config.depths(level))
        last = level == len(config.block_out_channels) - 1
        self.downsamplers = [] if last else [Downsample2D(channels, padding=(1, 1, 1, 1))]

    def __call__(self, x: Array, time_embedding: Array, conditioning: Conditioning,
                 feature: Array | None = None) -> tuple[Array, list[Array]]:
        """feature: what a T2I-Adapter adds to the last layer, or, at levels without transformers, to the result; or None"""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time_embedding)
            if self.attentions:
                x = self.attentions[i](x, conditioning)
                if feature is not None and resnet is self.resnets[-1]:
                    x = added(x, feature)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            skips.append(x)
        if feature is not None and not self.attentions:
            x = skips[-1] = added(x, feature)
        return x, skips


class MidBlock(Module):
    """Residual block, transformer, residual block at the smallest size      (N, H, W, C) → (N, H, W, C)

    Some distilled models have only the first.
    """
    def __init__(self, config: UNetConfig) -> None:
        channels = config.block_out_channels[-1]
        self.attentions = [_transformer(config, -1, config.mid_depth)] if config.mid_depth else []
        self.resnets = [_resnet(config, channels, channels) for _ in range(1 + len(self.attentions))]

    def __call__(self, x: Array, time_embedding: Array, conditioning: Conditioning) -> Array:
        x = self.resnets[0](x, time_embedding)
        for attention, resnet in zip(self.attentions, self.resnets[1:]):
            x = resnet(attention(x, conditioning), time_embedding)
        return x


class UpBlock(Module):
    """Residual blocks on (x, skip), each followed by a transformer at levels that have them, then the next larger size."""
    def __init__(self, config: UNetConfig, level: int, in_channels: int) -> None:
        channels = config.block_out_channels[level]
        below = config.block_out_channels[max(level - 1, 0)]      # the oldest skip of a level is its input on the way down
        skips = [channels] * config.layers_per_block + [below]
        inputs = [in_channels] + [channels] * config.layers_per_block
        self.resnets = [_resnet(config, x + skip, channels) for x, skip in zip(inputs, skips)]
        self.attentions = _transformers(config, level, config.depths(level, up=True))
        self.upsamplers = [Upsample2D(channels)] if level > 0 else []

    def __call__(self, x: Array, skips: list[Array], time_embedding: Array, conditioning: Conditioning) -> Array:
        """Takes what it needs from the end of `skips`."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(np.concatenate([x, repeated(skips.pop(), len(x))], axis=-1), time_embedding)
            if self.attentions:
                x = self.attentions[i](x, conditioning)
        for upsampler in self.upsamplers:
            x = upsampler(x, *skips[-1].shape[1:3])
        return x


class WayDown(Module):
    """What a UNet and a ControlNet have in common: the time embedding, the way down, the middle block."""
    def __init__(self, config: UNetConfig) -> None:
        self.config = config
        channels = config.block_out_channels
        self.conv_in = Conv2d(config.in_channels, channels[0])
        self.time_embedding = TimestepEmbedding(channels[0], config.time_channels, config.time_cond_proj_dim)
        self.add_embedding = TimestepEmbedding(config.added_width, config.time_channels) if config.added_width else None
        self.down_blocks = [DownBlock(config, level, channels[max(level - 1, 0)]) for level in range(len(channels))]
        self.mid_block = None if config.mid_depth is None else MidBlock(config)

    def conditioned(self, latents: Array, conditioning: Conditioning | Array) -> Conditioning:
        """What a call is conditioned on, a `Conditioning`; TypeError or ValueError if that or latents are not as expected"""
        if not isinstance(conditioning, Conditioning):
            conditioning = Conditioning(conditioning)
        expected.pictures(latents, "latents", self.config.in_channels)
        expected.states(conditioning.states, self.config.cross_attention_dim)
        return conditioning

    def embed_time(self, timesteps: Array | float, conditioning: Conditioning) -> Array:
        """Time steps (N,) or one number, M prompts → what residual blocks read, (N, E), (1, E) for one number, XL: (M, E)

        SiLU is applied here, once: every residual block begins with it.
        """
        sinusoids = self._sinusoids(timesteps, self.config.block_out_channels[0])
        embedded = self.time_embedding(sinusoids, conditioning.timestep_cond)
        if self.add_embedding:
            added = self.add_embedding(self.added(conditioning))
            embedded = repeated(embedded, len(added)) + added
        return kernels.silu(embedded)

    def added(self, conditioning: Conditioning) -> Array:
        """XL: the pooled vector of each prompt, then the sinusoids of its sizes, one after the other      → (M, added_width)"""
        if conditioning.pooled is None or conditioning.sizes is None:
            raise ValueError("this UNet also needs pooled vectors and sizes: give it a Conditioning that has them")
        sizes = self._sinusoids(conditioning.sizes.reshape(-1), self.config.size_width)
        return np.concatenate([conditioning.pooled, sizes.reshape(len(conditioning), -1)], axis=-1)

    def _sinusoids(self, numbers, width):                    # (N,) or one number → (N, width)
        numbers = np.atleast_1d(np.asarray(numbers, np.float32))
        return kernels.timestep_embedding(numbers, width, self.config.flip_sin_to_cos, self.config.freq_shift)

    def down(self, x: Array, time_embedding: Array, conditioning: Conditioning,
             features: Sequence[Array] = ()) -> tuple[Array, list[Array]]:
        """The result of `conv_in` (N, H, W, C) → that of the last level, and a list of what the way up reads, x first

        features: what a T2I-Adapter adds at each level, see t2i_adapter.py
        In XL, where each prompt has its own time embedding, prompts share no more than x.
        """
        skips, x = [x], repeated(x, max(len(x), len(time_embedding)))
        for block, feature in itertools.zip_longest(self.down_blocks, features[:len(self.down_blocks)]):
            x, outputs = block(x, time_embedding, conditioning, feature)
            skips += outputs
        return x, skips


class UNet2DConditionModel(WayDown):
    """Latents (N, H, W, C_in), time steps (N,) or one number, conditioning → prediction (N, H, W, C_out), float32

    The prediction is the noise ε, or v = √ᾱ ε − √(1−ᾱ) x₀ for checkpoints trained so; the schedule knows which.
    conditioning: a `Conditioning`, which serves several calls, or an array, the hidden states (N, S, X) of the prompts
    N latents also go with 2N prompts (3N, ...), which share them: latents i with prompts i and N + i → predictions
    (2N, H, W, C_out). ValueError for another number. Errors for other shapes: see expected.py
    residuals: what is added to the skips, a list, and to the middle's result, see controlnet.py; None: nothing
    features: what is added on the way down, a list, see t2i_adapter.py
    """
    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        channels = config.block_out_channels
        levels = range(len(channels))
        self.up_blocks = [UpBlock(config, level, channels[min(level + 1, levels[-1])]) for level in reversed(levels)]
        self.conv_norm_out = GroupNorm(channels[0], config.norm_num_groups, eps=config.norm_eps)
        self.conv_out = Conv2d(channels[0], config.out_channels)

    def __call__(self, latents: Array, timesteps: Array | float, conditioning: Conditioning | Array,
                 residuals: tuple[list[Array], Array] | None = None, features: Sequence[Array] = ()) -> Array:
        conditioning = self.conditioned(latents, conditioning)
        if len(conditioning) % len(latents):
            raise ValueError(f"{len(latents)} latents cannot be shared by {len(conditioning)} prompts")
        time_embedding = self.embed_time(timesteps, conditioning)
        x, skips = self.down(self.conv_in(latents), time_embedding, conditioning, features)
        if self.mid_block:
            x = self.mid_block(x, time_embedding, conditioning)
        for feature in features[len(self.down_blocks):]:          # XL's adapters have one more, for the middle
            x = added(x, feature)
        if residuals is not None:
            skips, x = [added(*each) for each in zip(skips, residuals[0], strict=True)], added(x, residuals[1])
        x = self.up(x, skips, time_embedding, conditioning)
        return self.conv_out(self.conv_norm_out.silu(x))

    def up(self, x: Array, skips: list[Array], time_embedding: Array, conditioning: Conditioning) -> Array:
        """The middle block's result, and `skips` from `down`, which this empties → (N, H, W, first level's channels)"""
        for block in self.up_blocks:
            x = block(x, skips, time_embedding, conditioning)
        return x


def added(x: Array, y: Array) -> Array:
    """x + y, of which one may be shared by the batch of the other      (n, ...), (N, ...) → (N, ...)"""
    batch = max(len(x), len(y))
    return repeated(x, batch) + repeated(y, batch)


def _resnet(config, in_channels, out_channels):
    return ResnetBlock2D(in_channels, out_channels, config.norm_num_groups, eps=config.norm_eps,
                         time_channels=config.time_channels)


def _transformers(config, level, depths):
    return [_transformer(config, level, depth) for depth in depths] if config.cross_attention[level] else []


def _transformer(config, level, depth):
    crosses = level >= 0 and config.only_cross_attention is not None and config.only_cross_attention[level]
    return Transformer2DModel(config.block_out_channels[level], config.heads[level], config.cross_attention_dim,
                              config.norm_num_groups, depth, config.linear_projection, crosses)
