"""Models that are larger than the memory: what is chosen for XL at full size, how long a step takes, what is read of a file."""
import os
import pathlib
import tracemalloc
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench import models, xl
from npdiffusion import kernels
from npdiffusion.adapters import delta_weights, merging
from npdiffusion.checkpoints import families, safetensors_file
from npdiffusion.checkpoints.part import Part
from npdiffusion.checkpoints.tensors import Tensor
from npdiffusion.kernels import machine
from npdiffusion.memory import budget, estimates, seconds
from npdiffusion.models import flops, layers, parameters
from npdiffusion.models.conditioning import Conditioning
from npdiffusion.models.configs import UNetConfig
from npdiffusion.models.on_disk import OnDisk
from npdiffusion.models.unet import UNet2DConditionModel
from npdiffusion.study.tracing import flop
from tests import references
from tests.differences import agree

ROW = next(family for family in families.FAMILIES if family.name == families.XL)
SIZES = dict(block_out_channels=(32, 64, 128), layers_per_block=2, cross_attention=(False, True, True), norm_num_groups=8,
             cross_attention_dim=76, heads=(2, 4, 4), down_depths=((0, 0), (2, 2), (3, 3)),
             up_depths=((0, 0, 0), (2, 2, 2), (3, 3, 3)), mid_depth=3)


@pytest.fixture(scope="module")
def parts():
    """XL at full size, of which there are no weights"""
    found = {}
    for name, sizes in xl.sizes().items():
        model = ROW.parts[name].model(sizes)
        tensors = {each: Tensor(pathlib.Path("x"), each, "BF16", shape, 0) for each, shape in parameters.shapes(model).items()}
        found[name] = Part.match(model, tensors, "x")
    return found


def loaded(config):
    """A UNet of random weights"""
    unet = UNet2DConditionModel(config)
    parameters.load(unet, models.tensors(unet), "random weights")
    return unet


# ---- what is chosen

@pytest.mark.parametrize(("limit", "dtype", "read", "tile"), [
    (2e9, "bfloat16", 4.3e9, 512), (3.5e9, "bfloat16", 2.8e9, 512), (4e9, "int8", 0, 576), (5e9, "int8", 0, 800),
    (8e9, "bfloat16", 0, 896), (12e9, "bfloat16", 0, None)])
def test_xl_at_1024_keeps_as_much_of_the_unet_as_good_tiles_leave_room_for(limit, dtype, read, tile, parts, monkeypatch):
    monkeypatch.setattr(machine, "multiplies_bytes", lambda: True)
    found = budget.plan(parts, limit, [(1024, 1024)])
    assert (found.dtype, found.tile if found.tile != 1024 else None) == (dtype, tile)
    assert found.read == pytest.approx(read, rel=0.05) and found.foretold <= limit


def test_tiles_are_smaller_than_good_ones_only_where_nothing_else_fits(parts):
    least = next(limit for limit in range(1_000_000_000, 2_000_000_000, 50_000_000) if fits(parts, limit))
    assert budget.plan(parts, least, [(1024, 1024)]).tile < budget.GOOD_TILE
    assert budget.plan(parts, least + 500e6, [(1024, 1024)]).tile == budget.GOOD_TILE


def fits(parts, limit):
    try:
        return budget.plan(parts, limit, [(1024, 1024)])
    except budget.UserError:
        return None


def test_keys_and_values_of_the_prompt_take_what_is_estimated():
    config = UNetConfig(**SIZES)
    conditioning = Conditioning(np.zeros((2, 77, 76), np.float32))
    loaded(config)(np.zeros((1, 16, 16, 4), np.float32), 5.0, conditioning)
    kept = sum(array.nbytes for pair in conditioning._keys_and_values.values() for array in pair)
    assert kept == estimates.words(config, 2)


# ---- how long a step takes

@pytest.mark.parametrize(("height", "width", "images"), [(16, 16, 1), (48, 40, 2)])
def test_what_is_foretold_of_a_step_is_all_of_its_arithmetic(height, width, images, monkeypatch):
    def counted(call):
        found = []
        with kernels.watched(lambda *operation: found.append(flop(*operation))):
            call()
        return sum(found)

    for name, most in ("SIDE", 16), ("TOKENS", 64), ("QUERIES", 16):
        monkeypatch.setattr(seconds, name, most)
    monkeypatch.setattr(seconds, "shortest", lambda call: (call(), counted(call))[1])           # keys of words are made once
    unet = loaded(UNetConfig(**SIZES))
    conditioning = Conditioning(np.zeros((images, 77, 76), np.float32))
    step = lambda: unet(np.zeros((images, height, width, 4), np.float32), 5.0, conditioning)
    step()
    assert seconds.of_step([unet], height, width, images) == pytest.approx(counted(step), rel=0.02)
    assert counted(step) < images * sum(flops.unet(unet.config, height, width).values())


def test_reading_is_foretold_from_weights_of_all_sizes_and_from_the_disk_where_files_are_not_remembered(monkeypatch):
    weights = [types.SimpleNamespace(size=size, read=lambda: None) for size in range(1, 41)]
    monkeypatch.setattr(seconds, "shortest", lambda call: 1)
    monkeypatch.setattr(seconds, "elapsed", lambda call: 10)
    monkeypatch.setattr(seconds.machine, "memory_available", lambda: 100)
    assert seconds.reading([], 0) == (0, 0)
    packing, files = seconds.reading(weights, read=99)
    assert packing == pytest.approx(40, rel=0.1) and files == 0                  # eight of forty, of which one takes a second
    assert seconds.reading(weights, read=101) == (packing, 10 * packing)


# ---- adapters

def test_a_weight_that_a_lora_changes_takes_what_is_estimated(tmp_path):
    outputs, inputs = 900, 1100
    random = torch.Generator().manual_seed(0)
    save_file({"w": torch.randn(outputs, inputs, generator=random)}, tmp_path / "w.safetensors")
    pair = {"up": references.Tensor(torch.ones(outputs, 4)), "down": references.Tensor(torch.ones(4, inputs))}
    layer = delta_weights.Layer(pair, "file", "layer")
    _, delta = delta_weights.lora(layer, outputs, inputs, 1)
    tensor = safetensors_file.read_file(tmp_path / "w.safetensors")["w"]
    changed = merging.Changed(tensor, (outputs, inputs), [(lambda weight, strength: strength * delta(), 0.5)] * 2)
    tracemalloc.start()
    changed()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak == pytest.approx(estimates.merging(layers.Linear(inputs, outputs)), rel=0.15 + 1 / 3)


def test_a_lora_in_a_prompt_leaves_fewer_weights_in_memory(parts):
    without, with_it = (budget.plan(parts, 3.5e9, [(1024, 1024)], adapted=adapted) for adapted in ((), ROW.adapted))
    more = 3 * 4 * 1280 * 2560 * 9
    assert with_it.buffer - without.buffer == more and with_it.foretold <= 3.5e9
    assert without.kept - with_it.kept == pytest.approx(more, rel=0.02)
    with pytest.warns(UserWarning, match="an adapter is merged into weights .* may take 0.35 GB more than max_memory"):
        without.allow_merging()
    with_it.allow_merging()


# ---- what is read

def test_the_system_reads_ahead_what_is_used_next(tmp_path, monkeypatch):
    save_file({name: torch.ones(40, 40) for name in "abc"}, tmp_path / "w.safetensors")
    tensors = safetensors_file.read_file(tmp_path / "w.safetensors")
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, size, advice: asked.append((start, size)), raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    weights = [OnDisk(tensors[name], (40, 40), "file") for name in "abc"]
    for weight in weights:
        weight.read()
    asked.clear()
    for weight in weights:
        weight.read()
    assert asked[:2] == [(tensors[name].start, 6400) for name in "bc"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_of_a_table_on_disk_only_rows_that_are_asked_for_are_read(dtype, tmp_path, monkeypatch):
    table = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 12), dtype=np.float32)).to(dtype)
    save_file({"w": table}, tmp_path / "w.safetensors")
    embedding, read = layers.Embedding(50, 12), []
    embedding.weight = OnDisk(safetensors_file.read_file(tmp_path / "w.safetensors")["w"], (50, 12), "file")
    monkeypatch.setattr(Tensor, "__call__", lambda self, into=None, call=Tensor.__call__: (
        read.append(self.shape), call(self, into))[1])
    ids = np.array([[3, 49, 3], [0, 7, 49]])
    expected = torch.nn.functional.embedding(torch.from_numpy(ids), table.float())
    agree("text encoder", "rows of a table on disk", embedding(ids), expected, 0)
    assert read == [(1, 12)] * 4
    with pytest.raises(IndexError):
        embedding(np.array([50]))
