"""The sizes of a model, read from the `config.json` files of a checkpoint.

Each class is what one model is built from. The files are untrusted: a value of the wrong kind or an absurd size is a
UserError, and so is a setting that asks for an architecture that isn't here.
"""
from dataclasses import dataclass

from npdiffusion.errors import UserError

LARGEST = {"channels": 8192, "levels": 8, "layers": 64, "vocabulary": 1 << 20, "positions": 1 << 16}

XL_FACTOR = 0.13025      # of the latents of XL's VAE, whose shapes are those of v1's


class Reader:
    """Takes checked values out of one configuration; messages name the file and the setting."""
    def __init__(self, settings, source):
        self.settings = {name: value for name, value in settings.items() if value is not None}     # null means "not set"
        self.source = source

    def fail(self, name, wanted):
        raise UserError(f"{self.source}: {name} = {self.settings.get(name)!r}, but {wanted}")

    def integer(self, name, default, largest, smallest=1):
        value = self.settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
            self.fail(name, f"an integer from {smallest} to {largest} is needed")
        return value

    def number(self, name, default):
        value = self.settings.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
            self.fail(name, "a positive number is needed")
        return float(value)

    def channels(self, name, default):
        values = self.settings.get(name, default)
        if (not isinstance(values, (list, tuple)) or not 1 <= len(values) <= LARGEST["levels"]
                or not all(type(c) is int and 1 <= c <= LARGEST["channels"] for c in values)):
            self.fail(name, f"a list of at most {LARGEST['levels']} numbers of channels up to {LARGEST['channels']} is needed")
        return tuple(values)

    def choices(self, name, default, allowed):
        """A list of names, one for each level, all of them in `allowed`."""
        values = self.settings.get(name, default)
        if not isinstance(values, (list, tuple)) or not all(value in allowed for value in values):
            self.fail(name, f"only {' and '.join(allowed)} are known")
        return tuple(values)

    def must_be(self, **expected):
        """Settings that would change the architecture: only this value (or none at all) is supported."""
        for name, value in expected.items():
            if self.settings.get(name, value) != value:
                self.fail(name, f"only {value!r} is supported (the Stable Diffusion v1 architecture)")

    def by_level(self, name, default, levels):
        """One value for all levels, or a list with one for each → a list of values, which aren't checked"""
        value = self.settings.get(name, default)
        values = list(value) if isinstance(value, (list, tuple)) else [value] * levels
        if len(values) != levels:
            self.fail(name, f"one is needed for each of the {levels} levels")
        return values

    def depths(self, name, values, layers):
        """How many blocks the transformers of a level have: a number for all its layers, or a list with one for each"""
        values = list(values) if isinstance(values, (list, tuple)) else [values] * layers
        if len(values) != layers or not all(type(n) is int and 0 <= n <= LARGEST["layers"] for n in values):
            self.fail(name, f"for each level a number up to {LARGEST['layers']} is needed, or a list of {layers}")
        return tuple(values)

    def divisible(self, name, channels, groups):
        if any(c % groups for c in channels):
            self.fail(name, f"it must divide every number of channels, {list(channels)}")


@dataclass(frozen=True)
class CLIPTextConfig:
    """Text encoder; the defaults are SD v1's (CLIP ViT-L/14).

    eos_token_id     the end of a text, for pooling; 2 stands for the largest id, as configurations had it wrong at first
    projection_dim   width of the pooled vector, in models that have a projection
    """
    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"
    eos_token_id: int = 2
    projection_dim: int = 512

    @classmethod
    def from_dict(cls, settings, source="text_encoder/config.json", only=None):
        read = Reader(settings, source)
        read.must_be(**(only or {}))
        config = cls(
            vocab_size=read.integer("vocab_size", cls.vocab_size, LARGEST["vocabulary"]),
            hidden_size=read.integer("hidden_size", cls.hidden_size, LARGEST["channels"]),
            intermediate_size=read.integer("intermediate_size", cls.intermediate_size, 4 * LARGEST["channels"]),
            num_hidden_layers=read.integer("num_hidden_layers", cls.num_hidden_layers, LARGEST["layers"]),
            num_attention_heads=read.integer("num_attention_heads", cls.num_attention_heads, LARGEST["channels"]),
            max_position_embeddings=read.integer("max_position_embeddings", 77, LARGEST["positions"]),
            layer_norm_eps=read.number("layer_norm_eps", cls.layer_norm_eps),
            hidden_act=read.settings.get("hidden_act", cls.hidden_act),
            eos_token_id=read.integer("eos_token_id", cls.eos_token_id, LARGEST["vocabulary"], smallest=0),
            projection_dim=read.integer("projection_dim", cls.projection_dim, LARGEST["channels"]))
        if config.hidden_act not in ("quick_gelu", "gelu"):
            read.fail("hidden_act", "only quick_gelu and gelu are known")
        read.divisible("num_attention_heads", [config.hidden_size], config.num_attention_heads)
        return config


UNET_ONLY = dict(
    act_fn="silu", center_input_sample=False, mid_block_scale_factor=1, downsample_padding=1,
    dual_cross_attention=False, class_embed_type=None, encoder_hid_dim=None, num_class_embeds=None,
    resnet_time_scale_shift="default", time_embedding_type="positional", mid_block_only_cross_attention=False,
    conv_in_kernel=3, conv_out_kernel=3, attention_type="default", num_attention_heads=None,
    resnet_skip_time_act=False, time_embedding_dim=None, resnet_out_scale_factor=1.0, dropout=0.0)
MID_BLOCKS = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D")


@dataclass(frozen=True)
class UNetConfig:
    """UNet; the defaults are SD v1's. `heads`, `cross_attention`, `only_cross_attention` have one entry for each level.

    down_depths, up_depths   how many blocks each transformer has: for each level, from the first, a tuple with a number for
                             each layer on the way down, or up (one layer more); None: one block each
    mid_depth                likewise of the middle block; 0: it is a residual block alone, None: there is no middle block
    linear_projection        whether linear layers lead into and out of transformers, or 1×1 convolutions, which are the same
    only_cross_attention     at a level, the first attention of each block reads the prompt, too, as the second one does
    added_width, size_width  in XL: of the vector that is added to the time embedding, of the sinusoid of each size in it
    """
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    cross_attention_dim: int = 768
    cross_attention: tuple = (True, True, True, False)
    heads: tuple = (8, 8, 8, 8)
    down_depths: tuple | None = None
    up_depths: tuple | None = None
    mid_depth: int | None = 1
    linear_projection: bool = False
    only_cross_attention: tuple | None = None
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    sample_size: int = 64
    time_cond_proj_dim: int | None = None      # width of the embedded guidance scale, in models that it is distilled into
    added_width: int | None = None
    size_width: int | None = None

    @property
    def time_channels(self):
        return 4 * self.block_out_channels[0]

    def depths(self, level, up=False):
        """How many blocks the transformer of each layer of a level has; zeros where there are none"""
        given, layers = self.up_depths if up else self.down_depths, self.layers_per_block + up
        if not self.cross_attention[level]:
            return (0,) * layers
        return (1,) * layers if given is None else given[level]

    @classmethod
    def from_dict(cls, settings, source="unet/config.json", only=None):
        read = Reader(settings, source)
        read.must_be(**(UNET_ONLY if only is None else only))
        channels = read.channels("block_out_channels", cls.block_out_channels)
        down = read.choices("down_block_types", ["CrossAttnDownBlock2D"] * (len(channels) - 1) + ["DownBlock2D"],
                            ("CrossAttnDownBlock2D", "DownBlock2D"))
        cross_attention = tuple(name.startswith("CrossAttn") for name in down)
        up = read.choices("up_block_types", [name.replace("Down", "Up") for name in reversed(down)],
                          ("CrossAttnUpBlock2D", "UpBlock2D"))
        if len(down) != len(channels):
            read.fail("down_block_types", f"one is needed for each of the {len(channels)} levels of block_out_channels")
        if tuple(name.startswith("CrossAttn") for name in reversed(up)) != cross_attention:
            read.fail("up_block_types", "it must mirror down_block_types")
        # diffusers calls the number of heads `attention_head_dim`, for historical reasons
        heads = tuple(read.by_level("attention_head_dim", 8, len(channels)))
        if not all(type(h) is int and h >= 1 and c % h == 0 for h, c in zip(heads, channels)):
            read.fail("attention_head_dim", "it is the number of heads and must divide the channels of each level")
        layers = read.integer("layers_per_block", cls.layers_per_block, LARGEST["layers"])
        down_depths, up_depths, mid_depth = transformer_depths(read, settings, cross_attention, layers)
        only = tuple(read.by_level("only_cross_attention", False, len(channels)))
        if not all(isinstance(value, bool) for value in only):
            read.fail("only_cross_attention", "true or false is needed, or a list of these")
        if read.settings.get("addition_embed_type") not in (None, "text_time"):
            read.fail("addition_embed_type", "only text_time is known")
        adds = "addition_embed_type" in read.settings
        if channels[0] % 2:
            read.fail("block_out_channels", "the first must be even, for sines and cosines")
        config = cls(
            in_channels=read.integer("in_channels", cls.in_channels, 64),
            out_channels=read.integer("out_channels", cls.out_channels, 64),
            block_out_channels=channels,
            layers_per_block=layers,
            cross_attention_dim=read.integer("cross_attention_dim", cls.cross_attention_dim, LARGEST["channels"]),
            cross_attention=cross_attention,
            heads=heads,
            down_depths=down_depths, up_depths=up_depths, mid_depth=mid_depth,
            linear_projection=bool(read.settings.get("use_linear_projection", False)),
            only_cross_attention=only if any(only) else None,
            norm_num_groups=read.integer("norm_num_groups", cls.norm_num_groups, LARGEST["channels"]),
            norm_eps=read.number("norm_eps", cls.norm_eps),
            flip_sin_to_cos=bool(read.settings.get("flip_sin_to_cos", True)),
            freq_shift=read.integer("freq_shift", cls.freq_shift, 1, smallest=0),
            sample_size=read.integer("sample_size", cls.sample_size, 1024),
            time_cond_proj_dim=read.integer("time_cond_proj_dim", 2, LARGEST["channels"], smallest=2)
            if "time_cond_proj_dim" in read.settings else None,
            added_width=read.integer("projection_class_embeddings_input_dim", 2816, LARGEST["channels"]) if adds else None,
            size_width=read.integer("addition_time_embed_dim", 256, LARGEST["channels"], smallest=2) if adds else None)
        read.divisible("norm_num_groups", channels, config.norm_num_groups)
        return config


def transformer_depths(read, settings, cross_attention, layers):
    """`down_depths`, `up_depths` and `mid_depth` of a UNet's configuration; settings: of the file, null included"""
    levels = len(cross_attention)
    name, reverse = "transformer_layers_per_block", "reverse_transformer_layers_per_block"
    given = read.by_level(name, 1, levels)
    down = tuple(read.depths(name, each, layers) for each in given)
    if reverse in read.settings:
        up = tuple(read.depths(reverse, each, layers + 1) for each in reversed(read.by_level(reverse, 1, levels)))
    elif any(isinstance(each, (list, tuple)) for each in given):
        read.fail(name, f"with a list for each level {reverse} is needed, too")
    else:
        up = tuple(read.depths(name, each, layers + 1) for each in given)
    middle = settings.get("mid_block_type", MID_BLOCKS[0])           # null: there is none
    if middle not in (*MID_BLOCKS, None):
        read.fail("mid_block_type", f"only {' and '.join(MID_BLOCKS)} are known")
    mid = None if middle is None else 0 if middle == "UNetMidBlock2D" else down[-1][0]
    down, up = (tuple(level if there else (0,) * len(level) for level, there in zip(levels, cross_attention))
                for levels in (down, up))
    same = all(depth == 1 for level, there in zip((*down, *up), cross_attention * 2) if there for depth in level)
    return (None, None, mid) if same else (down, up, mid)


VAE_ONLY = dict(
    act_fn="silu", in_channels=3, out_channels=3, use_quant_conv=True, use_post_quant_conv=True,
    shift_factor=None, latents_mean=None, latents_std=None, mid_block_add_attention=True)


@dataclass(frozen=True)
class VAEConfig:
    """Autoencoder; the defaults are SD v1's."""
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    sample_size: int = 512

    @property
    def reduction(self):
        """Pixels in each direction that one latent pixel stands for."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, settings, source="vae/config.json", only=None):
        read = Reader(settings, source)
        read.must_be(**(VAE_ONLY if only is None else only))
        channels = read.channels("block_out_channels", cls.block_out_channels)
        for side in ("Down", "Up"):
            usual = f"{side}EncoderBlock2D".replace("UpEn", "UpDe")
            blocks = read.choices(f"{side.lower()}_block_types", [usual] * len(channels),
                                  ("DownEncoderBlock2D", "UpDecoderBlock2D"))
            if len(blocks) != len(channels):
                read.fail(f"{side.lower()}_block_types", f"one is needed for each of the {len(channels)} levels")
        config = cls(
            latent_channels=read.integer("latent_channels", cls.latent_channels, 64),
            block_out_channels=channels,
            layers_per_block=read.integer("layers_per_block", cls.layers_per_block, LARGEST["layers"]),
            norm_num_groups=read.integer("norm_num_groups", cls.norm_num_groups, LARGEST["channels"]),
            scaling_factor=read.number("scaling_factor", cls.scaling_factor),
            sample_size=read.integer("sample_size", cls.sample_size, 8192))
        read.divisible("norm_num_groups", channels, config.norm_num_groups)
        return config


TINY_VAE_ONLY = dict(
    act_fn="relu", upsample_fn="nearest", upsampling_scaling_factor=2, in_channels=3, out_channels=3,
    shift_factor=0.0)


@dataclass(frozen=True)
class TinyVAEConfig:
    """TAESD; the defaults are its own. `encoder_blocks` and `decoder_blocks` have one number for each stage."""
    latent_channels: int = 4
    channels: int = 64
    encoder_blocks: tuple = (1, 3, 3, 3)
    decoder_blocks: tuple = (3, 3, 3, 1)
    scaling_factor: float = 1.0
    sample_size: int = 512

    @property
    def reduction(self):
        """Pixels in each direction that one latent pixel stands for."""
        return 2 ** (len(self.decoder_blocks) - 1)

    @property
    def block_out_channels(self):
        """As an autoencoder's of the usual kind: channels at each level."""
        return (self.channels,) * len(self.decoder_blocks)

    @classmethod
    def from_dict(cls, settings, source="vae/config.json", only=None):
        read = Reader(settings, source)
        read.must_be(**(TINY_VAE_ONLY if only is None else only))
        widths = {*read.channels("encoder_block_out_channels", (cls.channels,)),
                  *read.channels("decoder_block_out_channels", (cls.channels,))}
        if len(widths) > 1:
            read.fail("decoder_block_out_channels", "all blocks, the encoder's too, must have as many")
        blocks = {name: read.channels(f"num_{name}", getattr(cls, name))
                  for name in ("encoder_blocks", "decoder_blocks")}
        if len({len(counts) for counts in blocks.values()}) > 1 or max(map(max, blocks.values())) > LARGEST["layers"]:
            read.fail("num_decoder_blocks",
                      f"it must have as many numbers as num_encoder_blocks, up to {LARGEST['layers']}")
        return cls(latent_channels=read.integer("latent_channels", cls.latent_channels, 64), channels=widths.pop(),
                   **blocks, scaling_factor=read.number("scaling_factor", cls.scaling_factor))
