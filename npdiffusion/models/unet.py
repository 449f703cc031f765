"""The UNet that predicts the noise in latents, given the time step and the prompt.

Ronneberger et al. 2015, arXiv:1505.04597, with the residual blocks of DDPM and the spatial transformers of latent
diffusion (Rombach et al. 2021, arXiv:2112.10752): four levels of 320, 640, 1280 and 1280 channels in SD v1. On the way
down every result is kept; on the way up each residual block reads one of them beside its input, last kept first.

N images, H × W latent pixels, C channels (last), E time channels (4 · first level), S words of context width X.
What images, prompts or steps have in common is computed once: see conditioning.py.
"""
import numpy as np

from npdiffusion import kernels
from npdiffusion.models.conditioning import Conditioning, repeated
from npdiffusion.models.layers import Conv2d, GroupNorm, Linear
from npdiffusion.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from npdiffusion.models.transformer import Transformer2DModel


class TimestepEmbedding:
    """Two layers on the sinusoidal embedding, then SiLU, with which every residual block begins      (N, C) → (N, E)

    A model that guidance is distilled into also takes the embedded guidance scale, (N, P) or (1, P).
    """
    def __init__(self, channels, time_channels, condition=None):
        if condition is not None:
            self.cond_proj = Linear(condition, channels, bias=False)
        self.linear_1 = Linear(channels, time_channels)
        self.linear_2 = Linear(time_channels, time_channels)

    def __call__(self, x, condition=None):
        if condition is not None:
            x = x + self.cond_proj(condition)
        return kernels.silu(self.linear_2(kernels.silu(self.linear_1(x))))


class DownBlock:
    """Residual blocks, each followed by a transformer at levels that have them, then half the size.

    Returns the result and what the way up will want: the outputs of all layers, (N, H, W, C_out) and (N, H/2, W/2, C_out).
    """
    def __init__(self, config, level, in_channels):
        channels = config.block_out_channels[level]
        self.resnets = [_resnet(config, in_channels if i == 0 else channels, channels)
                        for i in range(config.layers_per_block)]
        self.attentions = [_transformer(config, level) for _ in self.resnets] if config.cross_attention[level] else []
        last = level == len(config.block_out_channels) - 1
        self.downsamplers = [] if last else [Downsample2D(channels, padding=(1, 1, 1, 1))]

    def __call__(self, x, time_embedding, conditioning):
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time_embedding)
            if self.attentions:
                x = self.attentions[i](x, conditioning)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            skips.append(x)
        return x, skips


class MidBlock:
    """Residual block, transformer, residual block at the smallest size      (N, H, W, C) → (N, H, W, C)"""
    def __init__(self, config):
        channels = config.block_out_channels[-1]
        self.attentions = [_transformer(config, -1)]
        self.resnets = [_resnet(config, channels, channels) for _ in range(2)]

    def __call__(self, x, time_embedding, conditioning):
        x = self.resnets[0](x, time_embedding)
        x = self.attentions[0](x, conditioning)
        return self.resnets[1](x, time_embedding)


class UpBlock:
    """Residual blocks on (x, skip), each followed by a transformer at levels that have them, then the next larger size."""
    def __init__(self, config, level, in_channels):
        channels = config.block_out_channels[level]
        below = config.block_out_channels[max(level - 1, 0)]      # the oldest skip of a level is its input on the way down
        skips = [channels] * config.layers_per_block + [below]
        inputs = [in_channels] + [channels] * config.layers_per_block
        self.resnets = [_resnet(config, x + skip, channels) for x, skip in zip(inputs, skips)]
        self.attentions = [_transformer(config, level) for _ in self.resnets] if config.cross_attention[level] else []
        self.upsamplers = [Upsample2D(channels)] if level > 0 else []

    def __call__(self, x, skips, time_embedding, conditioning):
        """Takes what it needs from the end of `skips`."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(np.concatenate([x, repeated(skips.pop(), len(x))], axis=-1), time_embedding)
            if self.attentions:
                x = self.attentions[i](x, conditioning)
        for upsampler in self.upsamplers:
            x = upsampler(x, *skips[-1].shape[1:3])
        return x


class UNet2DConditionModel:
    """Latents (N, H, W, C_in), time steps (N,) or one number, conditioning → prediction (N, H, W, C_out), float32

    The prediction is the noise ε, or v = √ᾱ ε − √(1−ᾱ) x₀ for checkpoints trained so; the schedule knows which.
    conditioning: a `Conditioning`, which serves several calls, or an array, the hidden states (N, S, X) of the prompts
    N latents also go with 2N prompts (3N, ...), which share them: latents i with prompts i and N + i → predictions
    (2N, H, W, C_out). ValueError for another number.
    """
    def __init__(self, config):
        self.config = config
        channels = config.block_out_channels
        levels = range(len(channels))
        self.conv_in = Conv2d(config.in_channels, channels[0])
        self.time_embedding = TimestepEmbedding(channels[0], config.time_channels, config.time_cond_proj_dim)
        self.down_blocks = [DownBlock(config, level, channels[max(level - 1, 0)]) for level in levels]
        self.mid_block = MidBlock(config)
        self.up_blocks = [UpBlock(config, level, channels[min(level + 1, levels[-1])]) for level in reversed(levels)]
        self.conv_norm_out = GroupNorm(channels[0], config.norm_num_groups, eps=config.norm_eps)
        self.conv_out = Conv2d(channels[0], config.out_channels)

    def __call__(self, latents, timesteps, conditioning):
        if not isinstance(conditioning, Conditioning):
            conditioning = Conditioning(conditioning)
        if len(conditioning) % len(latents):
            raise ValueError(f"{len(latents)} latents cannot be shared by {len(conditioning)} prompts")
        time_embedding = self.embed_time(timesteps, conditioning.timestep_cond)
        x, skips = self.down(self.conv_in(latents), time_embedding, conditioning)
        x = self.mid_block(x, time_embedding, conditioning)
        x = self.up(x, skips, time_embedding, conditioning)
        return self.conv_out(self.conv_norm_out.silu(x))

    def embed_time(self, timesteps, timestep_cond=None):
        """Time steps (N,) or one number, embedded guidance scale (N, P), (1, P) or None → (N, E), (1, E) for one number"""
        timesteps, config = np.atleast_1d(np.asarray(timesteps, np.float32)), self.config
        sinusoids = kernels.timestep_embedding(timesteps, config.block_out_channels[0], config.flip_sin_to_cos,
                                               config.freq_shift)
        return self.time_embedding(sinusoids, timestep_cond)

    def down(self, x, time_embedding, conditioning):
        """The result of `conv_in` (N, H, W, C) → that of the last level, and a list of what the way up reads, x first"""
        skips = [x]
        for block in self.down_blocks:
            x, outputs = block(x, time_embedding, conditioning)
            skips += outputs
        return x, skips

    def up(self, x, skips, time_embedding, conditioning):
        """The middle block's result, and `skips` from `down`, which this empties → (N, H, W, first level's channels)"""
        for block in self.up_blocks:
            x = block(x, skips, time_embedding, conditioning)
        return x


def _resnet(config, in_channels, out_channels):
    return ResnetBlock2D(in_channels, out_channels, config.norm_num_groups, eps=config.norm_eps,
                         time_channels=config.time_channels)


def _transformer(config, level):
    return Transformer2DModel(config.block_out_channels[level], config.heads[level], config.cross_attention_dim,
                              config.norm_num_groups)
