"""UNets of all families: their names and shapes at full size, and what tiny ones compute, beside diffusers'."""
import math
import re

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel as TorchUNet

from npdiffusion.checkpoints import original_names
from npdiffusion.errors import UserError
from npdiffusion.models import flops, parameters
from npdiffusion.models.conditioning import Conditioning
from npdiffusion.models.configs import UNetConfig
from npdiffusion.models.unet import UNet2DConditionModel
from tests import references, sizes
from tests.differences import agree
from tests.references import channels_first, channels_last, random

POOLED, SIZES = 32, np.array([[512, 768, 16, 8, 384, 256], [96, 64, 0, 24, 96, 64]], np.float32)
GMAC = {"SD v1": (64, 401.6), "SD 2": (64, 402.1), "SDXL": (128, 3380.6), "SDXL refiner": (128, 3643.0),
        "SSD-1B": (128, 2103.9), "Segmind-Vega": (128, 1411.2), "KOALA-700M": (128, 1350.8), "KOALA-1B": (128, 1715.9),
        "BK-SDM base": (64, 261.5), "BK-SDM small": (64, 255.4), "BK-SDM tiny": (64, 242.8),
        "SDXS-512-DreamShaper": (64, 184.7)}


@pytest.mark.parametrize("name", sizes.FULL)
def test_names_and_shapes_at_full_size_are_those_of_diffusers(name):
    settings, count, tensors = sizes.FULL[name]
    with torch.device("meta"):
        theirs = TorchUNet(**settings)
    ours = parameters.shapes(UNet2DConditionModel(UNetConfig.from_dict(settings)))
    assert ours == {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
    assert len(ours) == tensors and sum(map(math.prod, ours.values())) == count


@pytest.mark.parametrize("name", GMAC)
def test_operations_are_counted_in_all_of_them(name):
    side, wanted = GMAC[name]
    counted = sum(flops.unet(UNetConfig.from_dict(sizes.FULL[name][0]), side, side).values()) / 2e9
    assert counted == pytest.approx(wanted, rel=2e-3)


@pytest.fixture(scope="module", params=sizes.TINY)
def unets(request):
    """(name, diffusers' UNet, ours)"""
    theirs = references.torch_unet(**sizes.TINY[request.param])
    return request.param, theirs, references.twin(theirs)


def conditions(theirs):
    """Two prompts for such a UNet: what diffusers takes, and ours"""
    states, added = random(2, 77, theirs.config.cross_attention_dim, seed=1), {}
    if theirs.config.addition_embed_type:
        count = (theirs.config.projection_class_embeddings_input_dim - POOLED) // theirs.config.addition_time_embed_dim
        added = {"pooled": random(2, POOLED, seed=2), "sizes": SIZES[:, :count]}
    told = {"text_embeds": torch.from_numpy(added["pooled"]), "time_ids": torch.from_numpy(added["sizes"])} if added else None
    return (torch.from_numpy(states), told), Conditioning(states, **added)


def expected(theirs, x, timestep):
    (states, told), _ = conditions(theirs)
    with torch.no_grad():
        return channels_last(theirs(channels_first(x), timestep, states, added_cond_kwargs=told).sample)


@pytest.mark.parametrize("timestep", [999, 500.25])
def test_a_call_gives_what_diffusers_gives(each_backend, unets, timestep):
    name, theirs, ours = unets
    x = random(2, 12, 7, 4)
    agree("models", f"UNet of {name}", ours(x, timestep, conditions(theirs)[1]), expected(theirs, x, timestep), 1e-5,
          relative=True)


def test_latents_that_two_prompts_share_give_what_repeated_ones_give(each_backend, unets):
    name, theirs, ours = unets
    x = random(1, 8, 12, 4)
    agree("models", f"UNet of {name}, shared", ours(x, 41.0, conditions(theirs)[1]),
          expected(theirs, np.concatenate([x, x]), 41.0), 1e-5, relative=True)


def test_sizes_and_pooled_vectors_matter():
    ours = references.twin(references.torch_unet(**sizes.TINY["SDXL"]))
    x, states, pooled = random(1, 8, 8, 4), random(1, 77, 56, seed=1), random(1, POOLED, seed=2)
    usual = ours(x, 5.0, Conditioning(states, pooled=pooled, sizes=SIZES[:1]))
    turned = ours(x, 5.0, Conditioning(states, pooled=pooled, sizes=SIZES[:1, [1, 0, 3, 2, 5, 4]]))
    other = ours(x, 5.0, Conditioning(states, pooled=-pooled, sizes=SIZES[:1]))
    assert all(references.relative_error(each, usual) > 1e-3 for each in (turned, other))


def test_a_context_alone_is_not_enough_where_sizes_are_read():
    ours = UNet2DConditionModel(UNetConfig.from_dict(sizes.TINY["SDXL"]))
    with pytest.raises(ValueError, match="pooled vectors and sizes"):
        ours(random(1, 8, 8, 4), 5.0, random(1, 77, 56))


@pytest.mark.parametrize("setting, value, told", [
    ("transformer_layers_per_block", (1, 2), "3 levels"), ("transformer_layers_per_block", (1, (2, 2), 2), "reverse"),
    ("transformer_layers_per_block", (1, 2, 999), "up to 64"),
    ("reverse_transformer_layers_per_block", (1, (1, 1), 1), "list of 3"),
    ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn", "only UNetMidBlock2D"),
    ("only_cross_attention", (1, 0, 0), "true or false"),
    ("addition_embed_type", "image", "only text_time"), ("addition_time_embed_dim", 1, "from 2")])
def test_sizes_that_make_no_sense_are_one_line(setting, value, told):
    with pytest.raises(UserError, match=f"x.json: {setting} = .*{told}"):
        UNetConfig.from_dict(sizes.TINY_XL | {setting: value}, "x.json")


# ---- single files of small UNets, which the script of v1 numbered with three places a level

def numbered_by_threes(name):
    """As diffusers' script for v1 calls a tensor of a UNet with one layer a level; attention of the lowest level on the way up,
    which v1 doesn't have, keeps its name"""
    rules = [(r"conv_in", "input_blocks.0.0"), (r"conv_norm_out", "out.0"), (r"conv_out", "out.2"),
             (r"time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
             (r"down_blocks\.(\d)\.resnets\.0", lambda m: f"input_blocks.{3 * int(m[1]) + 1}.0"),
             (r"down_blocks\.(\d)\.attentions\.0", lambda m: f"input_blocks.{3 * int(m[1]) + 1}.1"),
             (r"down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{3 * int(m[1]) + 3}.0.op"),
             (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.0"),
             (r"up_blocks\.([1-9])\.attentions\.(\d)", lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.1"),
             (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"output_blocks.{3 * int(m[1]) + 2}.{1 if m[1] == '0' else 2}"),
             (r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
             (r"mid_block\.attentions\.0", "middle_block.1")]
    for pattern, there in rules:
        if found := re.match(rf"{pattern}\.", name):
            block, rest = (there if isinstance(there, str) else there(found)), name[found.end():]
            if ".resnets." in name:
                for ours, theirs in original_names.UNET_SYNONYMS.items():
                    rest = re.sub(rf"^{ours}\.", f"{theirs}.", rest)
            return f"{block}.{rest}"
    return name


@pytest.mark.parametrize("name", [name for name in sizes.FULL if "BK" in name or "SDXS" in name])
def test_every_tensor_of_a_small_unet_in_a_single_file_is_used_once(name):
    config = UNetConfig.from_dict(sizes.FULL[name][0])
    empty = UNet2DConditionModel(config)
    file = {numbered_by_threes(key): Shaped(shape) for key, shape in parameters.shapes(empty).items()}
    found = original_names.unet_settings({key: each.shape for key, each in file.items()})
    assert UNetConfig.from_dict(found) == config
    used = parameters.match(empty, file, "file", original_names.unet_name(config, "", file))
    assert {*map(id, used.values())} == {*map(id, file.values())} and len(used) == sizes.FULL[name][2]


class Shaped:
    """A tensor of which only the shape is known."""
    def __init__(self, shape):
        self.shape = shape


@pytest.mark.parametrize("name", ["SDXL", "SDXL refiner", "SSD-1B", "Segmind-Vega", "KOALA-700M", "KOALA-1B", "SD 2"])
def test_every_tensor_of_a_large_unet_in_a_single_file_is_used_once(name):
    config = UNetConfig.from_dict(sizes.FULL[name][0])
    empty = UNet2DConditionModel(config)
    spell = original_names.unet_name(config)
    file = {spell(key): Shaped(shape) for key, shape in parameters.shapes(empty).items()}
    found = original_names.unet_settings({key: each.shape for key, each in file.items()}) | {"sample_size": config.sample_size}
    assert UNetConfig.from_dict(found) == config
    used = parameters.match(empty, file, "file", original_names.unet_name(config, "", file))
    assert {*map(id, used.values())} == {*map(id, file.values())} and len(file) == sizes.FULL[name][2]
