"""The table of families: what is read from a row, shown by a made-up family with two text encoders."""
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import npdiffusion
from npdiffusion.checkpoints import families, whole_model
from npdiffusion.checkpoints.families import FAMILIES
from npdiffusion.checkpoints.safetensors_file import read_file
from npdiffusion.checkpoints.tensors import Stacked, Transposed, cut
from npdiffusion.diffusion.guidance import guide
from npdiffusion.errors import UserError
from tests import folders, references

V1 = FAMILIES[0]
PROMPT = "a red apple"


def two_encoders():
    """Torch models: two text encoders, 64 and 128 wide, and a UNet whose context is 192 wide"""
    narrow = folders.TEXT | {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 2}
    return {"text_encoder": references.torch_text_encoder(**narrow),
            "text_encoder_2": references.torch_text_encoder(**folders.TEXT),
            "unet": references.torch_unet(**folders.UNET | {"cross_attention_dim": 192}),
            "vae": references.torch_vae(**folders.VAE)}


@pytest.fixture(scope="module")
def torch_models():
    return two_encoders()


@pytest.fixture
def made_up(monkeypatch):
    """A row of the table: v1's, with a second text encoder."""
    second = replace(V1.parts["text_encoder"], prefix="second.")
    row = replace(V1, name="Made Up", parts=V1.parts | {"text_encoder_2": second}, classes=("MadeUpPipeline",))
    monkeypatch.setattr(families, "FAMILIES", [*FAMILIES, row])
    return row


@pytest.fixture
def folder(torch_models, made_up, tmp_path):
    path = folders.write_model(tmp_path / "made-up", torch_models)
    (path / "model_index.json").write_text(json.dumps({"_class_name": "MadeUpPipeline"}))
    return path


def test_a_family_with_two_text_encoders_is_one_row(folder, torch_models):
    pipeline = npdiffusion.load(folder)
    ids = pipeline.tokenizer.encode(PROMPT)[None]
    with torch.no_grad():
        expected = np.concatenate([torch_models[name](torch.from_numpy(ids)).last_hidden_state.numpy()
                                   for name in ("text_encoder", "text_encoder_2")], axis=-1)
    found = pipeline.encode_prompt(PROMPT)
    assert found.shape == (1, 77, 192) and np.abs(found - expected).max() < 1e-4


def test_its_picture_is_the_one_computed_by_hand(folder):
    pipeline = npdiffusion.load(folder)
    plan = pipeline.schedule.plan("ddim", 2)
    contexts = np.concatenate([pipeline.encode_prompt(prompt) for prompt in ("", PROMPT)])

    def denoise(x, t):
        _, alpha, sigma = plan.levels[t]
        return (x - sigma * guide(*np.split(pipeline.unet(x, t, contexts), 2), 7.5)) / alpha

    from npdiffusion.diffusion import noise
    *_, (latents, _) = plan.sample(denoise, noise.latent_noise("torch", [3], 8, 8).start(), None)
    image, = pipeline.generate(PROMPT, steps=2, sampler="ddim", guidance_scale=7.5, seed=3)
    assert np.array_equal(np.asarray(image), np.asarray(pipeline.decode(latents)))


def test_it_is_loaded_from_a_single_file_too(folder, torch_models, made_up, tmp_path):
    tensors = {}
    for part, model in torch_models.items():
        row = made_up.parts[part]
        settings = model.config.to_dict() if "text" in part else dict(model.config)
        name = row.name(row.config.from_dict(settings), [f"{row.prefix}text_model."], row.prefix)
        tensors |= {name(key): tensor.contiguous().clone() for key, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "made-up.safetensors")
    there = npdiffusion.load(tmp_path / "made-up.safetensors", tokenizer=folder / "tokenizer")
    assert np.array_equal(there.encode_prompt(PROMPT), npdiffusion.load(folder).encode_prompt(PROMPT))


def test_a_variant_of_a_row_spells_the_same_part_otherwise(folder, torch_models, made_up, tmp_path, monkeypatch):
    """As open_clip writes a text encoder: in_proj holds queries, keys and values below each other, a matrix is turned."""
    def arrange(tensors):
        tensors = cut(tensors, ".in_proj_weight", *(f".{x}_proj.weight" for x in "qkv"))
        tensors = cut(tensors, ".in_proj_bias", *(f".{x}_proj.bias" for x in "qkv"))
        return {name: Transposed(tensor) if name.endswith(".fc1.weight") else tensor for name, tensor in tensors.items()}
    row = made_up.parts["text_encoder_2"]
    other = replace(row, prefix="fused.", arrange=arrange)
    monkeypatch.setattr(families, "FAMILIES", [
        *FAMILIES, replace(made_up, parts=made_up.parts | {"text_encoder_2": replace(row, variants=(other,))})])
    tensors = {}
    for part, model in torch_models.items():
        row = other if part == "text_encoder_2" else made_up.parts[part]
        settings = model.config.to_dict() if "text" in part else dict(model.config)
        name = row.name(row.config.from_dict(settings), [f"{row.prefix}text_model."], row.prefix)
        tensors |= {name(key): tensor.contiguous().clone() for key, tensor in model.state_dict().items()}
    for kind in "weight", "bias":
        for stem in {name.partition("q_proj")[0] for name in tensors if re.match(rf"fused\..*\.q_proj\.{kind}", name)}:
            tensors[f"{stem}in_proj_{kind}"] = torch.cat([tensors.pop(f"{stem}{x}_proj.{kind}") for x in "qkv"])
    tensors = {name: tensor.T.contiguous() if name.startswith("fused.") and "fc1.weight" in name else tensor
               for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "fused.safetensors")
    there = npdiffusion.load(tmp_path / "fused.safetensors", tokenizer=folder / "tokenizer")
    assert np.array_equal(there.encode_prompt(PROMPT), npdiffusion.load(folder).encode_prompt(PROMPT))


def test_adapters_change_the_parts_that_the_row_says(made_up):
    assert made_up.adapted == ("unet", "text_encoder", "text_encoder_2") and V1.adapted == ("unet", "text_encoder")


def test_a_pipeline_class_that_no_row_has_is_refused(folder, monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", FAMILIES)
    with pytest.raises(UserError, match="this is made for 'MadeUpPipeline'; complete models of Stable Diffusion v1, .* can be"):
        whole_model.open_model(folder)


# ---- one tensor of a file as several parameters, and several as one

def test_rows_of_a_tensor_are_read_alone(tmp_path):
    fused = torch.arange(24, dtype=torch.float16).reshape(6, 4)
    save_file({"other": torch.ones(3), "in_proj": fused}, tmp_path / "x.safetensors")
    tensor = read_file(tmp_path / "x.safetensors")["in_proj"]
    q, k, v = (tensor.rows(start, start + 2) for start in (0, 2, 4))
    assert (k.shape, k.nbytes, k.name) == ((2, 4), 16, "in_proj")
    assert np.array_equal(np.concatenate([q(), k(), v()]), fused.numpy()) and np.array_equal(k(), fused[2:4].numpy())


def test_several_tensors_are_read_as_one(tmp_path):
    parts = {name: torch.randn(rows, 4) for name, rows in (("q", 2), ("k", 3))}
    save_file(parts, tmp_path / "x.safetensors")
    found = read_file(tmp_path / "x.safetensors")
    stacked = Stacked(found["q"], found["k"])
    assert stacked.shape == (5, 4) and stacked.nbytes == 80
    assert np.array_equal(stacked(), np.concatenate([parts["q"].numpy(), parts["k"].numpy()]))
