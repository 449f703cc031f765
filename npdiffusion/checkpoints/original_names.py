"""One file with a whole model, in the names of the original code (CompVis' latent-diffusion).

    model.diffusion_model.…    UNet                     first_stage_model.…   VAE
    cond_stage_model.…         text encoder, as transformers calls its layers in v1, as OpenCLIP does in SD 2
    conditioner.embedders.…    XL's two, of which the first is v1's, the second OpenCLIP's

The original counts a UNet's blocks through: with L layers per level, block (L + 1) · i + j + 1 on the way down is layer
j of level i, and every (L + 1)th is a down-sampler; on the way up each level has L + 1 layers, block (L + 1) · i + j.
The names of the parts inside differ by a dozen synonyms. So the tables here are loops and pairs, from diffusers' names
(which are this project's) to the original ones: 686 tensors of the UNet, 248 of the VAE, 196 of the text encoder in v1.

Such a file has no configuration: sizes are read off the shapes of tensors, and what shapes don't tell is as in v1.
"""
import functools
import re

from npdiffusion.checkpoints.tensors import Stacked, Transposed, cut
from npdiffusion.models.configs import MID_BLOCKS

OPEN_CLIP_SYNONYMS = {"self_attn": "attn", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "fc1": "c_fc", "fc2": "c_proj"}
UNET_SYNONYMS = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
                 "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
VAE_SYNONYMS = {"conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v"}

HEADS, HEAD_WIDTH = 8, 64       # v1's UNet has 8 heads at each level; its text encoder, and all else, heads of this width
CLIP_H_LAYERS = 24
OPEN_CLIP_Q, OPEN_CLIP_KV = re.compile(r"(.*\.attn)\.q_proj\.(weight|bias)"), re.compile(r"\.attn\.[kv]_proj\.\w+\Z")
OPEN_CLIP_LAYER = re.compile(r"\.resblocks\.(\d{1,4})\.")
DOWN_SAMPLER = re.compile(r"input_blocks\.(\d+)\.0\.op\.weight")


def unet_blocks(config, stride=None):
    """Pairs of names of a UNet's blocks: diffusers', original.

    stride: how many numbers a level takes; small UNets, of one layer a level, are found with the three that v1 has
    """
    levels, layers = len(config.block_out_channels), config.layers_per_block
    stride = stride or layers + 1
    yield from (("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
                ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
                ("time_embedding.cond_proj", "time_embed.cond_proj"),
                ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
                ("mid_block.resnets.0", "middle_block.0"), ("mid_block.attentions.0", "middle_block.1"),
                ("mid_block.resnets.1", "middle_block.2"))
    for i in range(levels):
        down, up = stride * i + 1, stride * i
        for j in range(layers):
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{down + j}.0"
            yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{down + j}.1"
        yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{down + stride - 1}.0.op"
        for j in range(layers + 1):
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{up + j}.0"
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{up + j}.1"
        after_attention = 2 if config.cross_attention[levels - 1 - i] else 1
        yield f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{up + stride - 1}.{after_attention}.conv"


def vae_blocks(config, newer=False):
    """Pairs of names of a VAE's blocks: diffusers', original; newer: whether its attention is called as in diffusers"""
    levels, layers = len(config.block_out_channels), config.layers_per_block
    for side in "encoder", "decoder":
        yield f"{side}.conv_norm_out", f"{side}.norm_out"
        yield f"{side}.mid_block.resnets.0", f"{side}.mid.block_1"
        yield f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"
        yield f"{side}.mid_block.attentions.0.to_out.0", f"{side}.mid.attn_1.{'to_out.0' if newer else 'proj_out'}"
        yield f"{side}.mid_block.resnets.1", f"{side}.mid.block_2"
    for i in range(levels):
        for j in range(layers):
            yield f"encoder.down_blocks.{i}.resnets.{j}", f"encoder.down.{i}.block.{j}"
        yield f"encoder.down_blocks.{i}.downsamplers.0", f"encoder.down.{i}.downsample"
        for j in range(layers + 1):
            yield f"decoder.up_blocks.{i}.resnets.{j}", f"decoder.up.{levels - 1 - i}.block.{j}"
        yield f"decoder.up_blocks.{i}.upsamplers.0", f"decoder.up.{levels - 1 - i}.upsample"


def unet_name(config, prefix="", names=()):
    """A function from the name of a UNet's parameter to the original one, with that prefix; names: of the file's tensors

    The script that wrote small UNets knew only v1: where a file has an up-sampler at another place, or blocks that kept
    diffusers' name, these are taken.
    """
    shape = {name.removeprefix(prefix) for name in names}
    blocks = dict(unet_blocks(config, numbers_per_level(shape)))
    for name, theirs in blocks.items():
        if ".upsamplers." in name:
            places = [re.sub(r"\.\d\.conv$", f".{place}.conv", theirs) for place in (1, 2)]
            blocks[name] = next((place for place in places if f"{place}.weight" in shape), theirs)
        elif ".attentions." in name and f"{name}.norm.weight" in shape:
            blocks[name] = name
    return functools.partial(original, blocks, UNET_SYNONYMS, prefix)


def control_name(config, prefix, widths):
    """The same for a ControlNet's: a UNet's way down, the hint, of that many widths, and its zero convolutions"""
    blocks = dict(unet_blocks(config))
    last = 2 * (widths - 1)
    blocks |= {"controlnet_mid_block": "middle_block_out.0", "controlnet_cond_embedding.conv_in": "input_hint_block.0",
               "controlnet_cond_embedding.conv_out": f"input_hint_block.{2 * (last + 1)}"}
    blocks |= {f"controlnet_cond_embedding.blocks.{i}": f"input_hint_block.{2 * (i + 1)}" for i in range(last)}
    zeros = (config.layers_per_block + 1) * len(config.block_out_channels)
    blocks |= {f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(zeros)}
    return functools.partial(original, blocks, UNET_SYNONYMS, prefix)


def numbers_per_level(names):
    """How many numbers a level takes in a file: up to the first down-sampler; None if there is none"""
    numbers = [int(found[1]) for name in names if (found := DOWN_SAMPLER.fullmatch(name))]
    return min(numbers, default=None)


def vae_name(config, prefix="", names=()):
    """The same for a VAE's parameters; names: of the file's tensors

    Some files were converted from diffusers and kept its names of attention's layers (diffusers' pull request 6097).
    """
    newer = any(name.endswith(".mid.attn_1.to_q.weight") for name in names)
    synonyms = {name: original for name, original in VAE_SYNONYMS.items() if not (newer and name.startswith("to_"))}
    return functools.partial(original, dict(vae_blocks(config, newer)), synonyms, prefix)


def text_name(names, prefix=""):
    """The same for a text encoder's; names: of the file's tensors, which may have `text_model.` behind the prefix or not"""
    there = any(name.startswith(prefix + "text_model.") for name in names)
    return f"{prefix}{'text_model.' if there else ''}{{}}".format


def open_clip_name(config, names, prefix):
    """The same for a text encoder in OpenCLIP's names, whose tensors `open_clip` has arranged"""
    whole = {"embeddings.token_embedding.weight": "token_embedding.weight", "text_projection.weight": "text_projection",
             "embeddings.position_embedding.weight": "positional_embedding", "final_layer_norm.weight": "ln_final.weight",
             "final_layer_norm.bias": "ln_final.bias"}

    def name(ours):
        if ours in whole:
            return prefix + whole[ours]
        words = [OPEN_CLIP_SYNONYMS.get(word, word) for word in ours.removeprefix("encoder.layers.").split(".")]
        return ".".join([prefix + "transformer.resblocks", *words])
    return name


def open_clip(tensors, leave=0):
    """A text encoder in OpenCLIP's names, {name: Tensor}: q, k, v apart, and `text_projection` as a linear layer's weight

    leave: how many of the last layers have no place in the model, nor then has the projection; a file of fewer layers than
    CLIP-H has that lacks the projection, too, was written without them
    """
    for kind in "weight", "bias":
        tensors = cut(tensors, f".in_proj_{kind}", *(f".{which}_proj.{kind}" for which in "qkv"))
    layers = {int(found[1]) for name in tensors if (found := OPEN_CLIP_LAYER.search(name))}
    whole = len(layers) >= CLIP_H_LAYERS or any(name.endswith(".text_projection") for name in tensors)
    last = set(sorted(layers)[len(layers) - leave * whole:])
    found = {}
    for name, tensor in tensors.items():
        layer = OPEN_CLIP_LAYER.search(name)
        if name.endswith(".text_projection") and len(tensor.shape) == 2:
            tensor = Transposed(tensor)
        if not ((layer and int(layer[1]) in last) or (leave and name.endswith(".text_projection"))):
            found[name] = tensor
    return found


def joined_open_clip(tensors):
    """What `open_clip` cut and exchanged, as it is in such a file: {name: (tensor, shape)} → the same"""
    found = {}
    for name, (tensor, shape) in tensors.items():
        if name.endswith(".text_projection"):
            found[name] = Transposed(tensor), shape[::-1]
        elif q := OPEN_CLIP_Q.fullmatch(name):
            before, kind = q.groups()
            parts = [tensors[f"{before}.{which}_proj.{kind}"][0] for which in "qkv"]
            found[f"{before}.in_proj_{kind}"] = Stacked(*parts), (3 * shape[0], *shape[1:])
        elif not OPEN_CLIP_KV.search(name):
            found[name] = tensor, shape
    return found


def original(blocks, synonyms, prefix, name):
    """blocks: {diffusers' name: original}, of which the longest that fits is taken; what isn't there has one name in both"""
    words = name.split(".")
    for n in range(len(words) - 1, 0, -1):
        block = ".".join(words[:n])
        if block in blocks:
            return ".".join([prefix + blocks[block], synonyms.get(words[n], words[n]), *words[n + 1:]])
    return prefix + name


def unet_settings(shape):
    """From {original name: shape} without prefix."""
    levels = 1 + sum(name.endswith(".0.op.weight") for name in shape)
    layers = count(shape, "input_blocks.{}.0.out_layers.3.weight", start=1)          # up to the first down-sampler
    stride = numbers_per_level(shape) or layers + 1
    first = [f"input_blocks.{stride * i + 1}" for i in range(levels)]
    channels = [shape[f"{block}.0.out_layers.3.weight"][0] for block in first]
    attention = [f"{block}.1.norm.weight" in shape for block in first]
    down = [[blocks(shape, f"input_blocks.{stride * i + 1 + j}.1") for j in range(layers)] for i in range(levels)]
    up = [[blocks(shape, f"output_blocks.{stride * i + j}.1", f"up_blocks.{i}.attentions.{j}") for j in range(layers + 1)]
          for i in range(levels)]
    keys = next((name for name in shape if name.endswith("attn2.to_k.weight")), "attn2.to_k.weight")
    linear = len(shape[keys.partition("transformer_blocks.")[0] + "proj_in.weight"]) == 2
    middle = blocks(shape, "middle_block.1")
    added = shape.get("label_emb.0.0.weight", (None, None))[1]
    return {
        "in_channels": shape["input_blocks.0.0.weight"][1], "out_channels": shape["out.2.weight"][0],
        "block_out_channels": channels, "layers_per_block": layers,
        "attention_head_dim": [max(1, width // HEAD_WIDTH) for width in channels] if linear else HEADS,
        "time_cond_proj_dim": shape.get("time_embed.cond_proj.weight", (None, None))[1],
        "cross_attention_dim": shape[keys][1], "use_linear_projection": linear,
        "transformer_layers_per_block": [*down[:-1], down[-1] if any(down[-1]) else [middle or 1] * layers],
        "reverse_transformer_layers_per_block": up,
        "mid_block_type": MID_BLOCKS[0] if middle else MID_BLOCKS[1] if "middle_block.0.in_layers.0.weight" in shape else None,
        "only_cross_attention": [there and shape[f"{block}.1.transformer_blocks.0.attn1.to_k.weight"][1] != width
                                 for block, there, width in zip(first, attention, channels)],
        "addition_embed_type": "text_time" if added else None, "projection_class_embeddings_input_dim": added,
        "down_block_types": ["CrossAttnDownBlock2D" if there else "DownBlock2D" for there in attention],
        "up_block_types": ["CrossAttnUpBlock2D" if there else "UpBlock2D" for there in reversed(attention)]}


def vae_settings(shape):
    """From {original name: shape} without prefix."""
    levels = count(shape, "encoder.down.{}.block.0.conv1.weight")
    return {"block_out_channels": [shape[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)],
            "layers_per_block": count(shape, "encoder.down.0.block.{}.conv1.weight"),
            "latent_channels": shape["decoder.conv_in.weight"][1]}


def text_settings(shape):
    """From {original name: shape} without prefix."""
    shape = {name.removeprefix("text_model."): size for name, size in shape.items()}
    vocabulary, width = shape["embeddings.token_embedding.weight"]
    return {"vocab_size": vocabulary, "hidden_size": width, "num_attention_heads": max(1, width // HEAD_WIDTH),
            "max_position_embeddings": shape["embeddings.position_embedding.weight"][0],
            "num_hidden_layers": count(shape, "encoder.layers.{}.layer_norm1.weight"),
            "intermediate_size": shape["encoder.layers.0.mlp.fc1.weight"][0]}


def open_clip_settings(shape):
    """From {name that `open_clip` has arranged: shape} without prefix."""
    vocabulary, width = shape["token_embedding.weight"]
    return {"vocab_size": vocabulary, "hidden_size": width, "num_attention_heads": max(1, width // HEAD_WIDTH),
            "max_position_embeddings": shape["positional_embedding"][0], "hidden_act": "gelu", "eos_token_id": 2,
            "num_hidden_layers": count(shape, "transformer.resblocks.{}.ln_1.weight"),
            "intermediate_size": shape["transformer.resblocks.0.mlp.c_fc.weight"][0],
            "projection_dim": shape["text_projection"][0] if "text_projection" in shape else width}


def blocks(shape, *names):
    """How many blocks the transformer of one of these names has, at least one; 0 if there is no transformer"""
    return max(count(shape, f"{name}.transformer_blocks.{{}}.norm1.weight") or int(f"{name}.norm.weight" in shape)
               for name in names)


def count(shape, pattern, start=0):
    """How many of pattern.format(start), pattern.format(start + 1), ... there are before the first that is missing."""
    n = start
    while pattern.format(n) in shape:
        n += 1
    return n - start
