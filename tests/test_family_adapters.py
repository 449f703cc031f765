"""Adapters for SD 2 and XL beside diffusers: LoRAs in every spelling, learnt words, and what belongs to another family."""
import copy
import re

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import npdiffusion
from npdiffusion.checkpoints import original_names
from npdiffusion.errors import UserError
from npdiffusion.models.configs import UNetConfig
from tests import loras, references, relatives
from tests.differences import agree
from tests.relatives import REFINER, V2, XL

TEXT = {V2: ("text_encoder",), XL: ("text_encoder", "text_encoder_2"), REFINER: ("text_encoder_2",)}
TE = {V2: {"text_encoder": "lora_te"}, XL: {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
      REFINER: {"text_encoder_2": "lora_te2"}}

pytestmark = pytest.mark.usefixtures("on_numpy")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """From a family's name to (diffusers' pipeline, ours of the folder that it wrote)"""
    made = {}

    def get(name):
        if name not in made:
            folder, theirs = tmp_path_factory.mktemp("adapted") / "model", relatives.theirs(name)
            theirs.save_pretrained(folder)
            made[name] = theirs, npdiffusion.load(folder)
        return made[name]
    return get


def parts(theirs, name):
    return {part: getattr(theirs, part) for part in ("unet", *TEXT[name])}


@torch.no_grad()
def their_results(theirs, name):
    """{part: what it computes}"""
    x, ids = inputs(theirs)
    width = theirs.unet.config.cross_attention_dim
    added = {}
    if name != V2:
        sizes = 6 if name == XL else 5
        added = {"added_cond_kwargs": {"text_embeds": torch.from_numpy(references.random(2, 48, seed=4)),
                                       "time_ids": torch.arange(2 * sizes).reshape(2, sizes).float()}}
    states = torch.from_numpy(references.random(2, 77, width, seed=1))
    found = {"unet": references.channels_last(theirs.unet(references.channels_first(x), 500, states, **added).sample)}
    for part in TEXT[name]:
        found[part] = getattr(theirs, part)(torch.from_numpy(ids), output_hidden_states=True).hidden_states[-1].numpy()
    return found


def our_results(ours, name):
    x, ids = inputs(ours)
    states = references.random(2, 77, ours.unet.config.cross_attention_dim, seed=1)
    sizes = np.arange(12 if name == XL else 10, dtype=np.float32).reshape(2, -1)
    conditioning = npdiffusion.models.conditioning.Conditioning(
        states, pooled=references.random(2, 48, seed=4), sizes=sizes) if name != V2 else states
    return {"unet": ours.unet(x, 500, conditioning)} | {
        part: ours.models[part].hidden_states(ids)[-1] for part in TEXT[name]}


def inputs(pipeline):
    return references.random(2, 8, 12, 4), np.random.default_rng(0).integers(0, 500, (2, 77))


def sgm(theirs):
    """From a layer of the UNet to its original name"""
    spell = original_names.unet_name(UNetConfig.from_dict(dict(theirs.unet.config)))
    return lambda layer: spell(f"{layer}.weight").removesuffix(".weight")


def spelled(kind, theirs, name):
    """{key: tensor} of a random LoRA for all attention of the UNet, and the text encoders"""
    models = parts(theirs, name)
    found = loras.pairs(models, parts=tuple(models))
    original = sgm(theirs)
    if kind.startswith("kohya"):
        spell = original if kind == "kohya, SGM" else str
        return loras.kohya(found, spell=lambda part, layer: "lora_unet_" + spell(layer).replace(".", "_") if part == "unet" else
                           f"{TE[name][part]}_text_model_{layer.replace('.', '_').removeprefix('text_model_')}")
    dotted = {"unet": "unet", "text_encoder": "text_encoder.text_model" if kind == "diffusers" else "text_encoder",
              "text_encoder_2": "text_encoder_2.text_model"}
    return {f"{dotted[part]}.{layer.removeprefix('text_model.')}.lora_{letter}.weight": tensor
            for (part, layer), both in found.items() for letter, tensor in zip("AB", both)}


@pytest.mark.parametrize("name, kind", [
    (V2, "kohya"), (V2, "diffusers, transformers 5.6"), (XL, "kohya"), (XL, "kohya, SGM"), (XL, "diffusers")])
def test_a_lora_does_what_it_does_in_diffusers(pair, name, kind, tmp_path):
    theirs, ours = pair(name)
    before, tensors = their_results(theirs, name), spelled(kind, theirs, name)
    theirs.load_lora_weights(dict(tensors))
    ours.load_lora_weights(loras.write(tmp_path / "ink.safetensors", tensors))
    check(name, kind, ours, theirs, before)
    theirs.unload_lora_weights()
    ours.unload_lora_weights()


def check(name, kind, ours, theirs, before, only=None):
    expected, found = their_results(theirs, name), our_results(ours, name)
    for part in only or expected:
        assert np.abs(expected[part] - before[part]).max() > 0.02
        agree("LoRA", f"{name}, {kind}: {part}", found[part], expected[part], 1e-5, relative=True)


@pytest.mark.parametrize("config", [
    peft.LoHaConfig(r=3, alpha=5, target_modules=r".*attn\d\.to_(q|k)"),
    peft.LoKrConfig(r=2, alpha=5, target_modules=r".*(attn\d\.to_(q|k)|conv1)", decompose_factor=4),
    peft.LoraConfig(r=3, lora_alpha=5, target_modules=r".*attn\d\.to_(q|k)", use_dora=True)], ids=["LoHa", "LoKr", "DoRA"])
def test_other_kinds_of_adapters_in_the_original_names_of_xl(pair, config, tmp_path, request):
    theirs, ours = pair(XL)
    before, original, unet = their_results(theirs, XL), sgm(theirs), theirs.unet
    model = peft.get_peft_model(copy.deepcopy(unet), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.requires_grad and "magnitude" not in key:
                p.normal_(0, 0.25)
    model.save_pretrained(tmp_path / "adapter")
    tensors = {}
    for key, tensor in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items():
        layer, role = re.fullmatch(r"base_model\.model\.(.*?)\.((?:lora_|hada_|lokr_).*)", key).groups()
        role = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight",
                "lora_magnitude_vector": "dora_scale"}.get(role, role)
        key = f"lora_unet_{original(layer).replace('.', '_')}"
        tensors[f"{key}.{role}"] = tensor[:, None] if role == "dora_scale" else tensor
        tensors[f"{key}.alpha"] = torch.tensor(5.0)
    assert "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k.alpha" in tensors
    ours.load_lora_weights(loras.write(tmp_path / "ink.safetensors", tensors))
    theirs.unet = model.eval()
    try:
        check(XL, request.node.callspec.id, ours, theirs, before, ["unet"])
    finally:
        theirs.unet = unet
        ours.unload_lora_weights()


def test_a_lora_may_change_what_xl_alone_has(pair, tmp_path):
    _, ours = pair(XL)
    wanted = {"lora_unet_label_emb_0_0": ours.unet.add_embedding.linear_1, "lora_te2_text_projection":
              ours.models["text_encoder_2"].text_projection, "lora_unet_input_blocks_3_0_op":
              ours.unet.down_blocks[0].downsamplers[0].conv}
    before = {key: layer.weight.copy() for key, layer in wanted.items()}
    tensors = {f"{key}.diff": torch.ones(layer.weight.shape) for key, layer in wanted.items()}
    ours.load_lora_weights(loras.write(tmp_path / "ink.safetensors", tensors))
    assert all(np.array_equal(layer.weight, before[key] + 1) for key, layer in wanted.items())
    ours.unload_lora_weights()
    assert all(np.array_equal(layer.weight, before[key]) for key, layer in wanted.items())


# ---- learnt words

def word(first=64, second=128, count=2, **more):
    random = torch.Generator().manual_seed(1)
    return {"clip_l": torch.randn(count, first, generator=random), "clip_g": torch.randn(count, second, generator=random),
            **more}


def test_both_text_encoders_of_xl_read_a_learnt_word(tmp_path):
    theirs, tensors = relatives.theirs(XL), word()
    theirs.save_pretrained(tmp_path / "model")
    ours = npdiffusion.load(tmp_path / "model")
    save_file(tensors, tmp_path / "zigzag.safetensors")
    prompt = "a zigzag on red"
    (plain, plain_pooled), = ours.contexts([(prompt, None)], 4, syntax="plain").at(0)
    for name, number in ("clip_l", ""), ("clip_g", "_2"):
        theirs.load_textual_inversion(tensors[name], token="zigzag", text_encoder=getattr(theirs, f"text_encoder{number}"),
                                      tokenizer=getattr(theirs, f"tokenizer{number}"))
    ours.load_textual_inversion(tmp_path / "zigzag.safetensors")
    # eos_token_id 2 means the largest id, which is a new word's: transformers says that such a model can't learn words.
    theirs.text_encoder_2.text_model.eos_token_id = theirs.tokenizer_2.eos_token_id
    with torch.no_grad():
        expected, _, pooled, _ = theirs.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
    (states, found), = ours.contexts([(prompt, None)], 4, syntax="plain").at(0)
    agree("textual inversion", "XL: states", states, expected, 2e-5, relative=True)
    agree("textual inversion", "XL: pooled vector", found, pooled, 2e-5, relative=True)
    assert np.abs(states - plain).max() > 0.1 and np.abs(found - plain_pooled).max() > 0.1


def test_a_word_that_an_xl_lora_brings_along_is_the_word_by_itself(pair, tmp_path):
    _, ours = pair(XL)
    save_file(word(), tmp_path / "zigzag.safetensors")
    save_file({f"bundle_emb.zigzag.{name}": tensor for name, tensor in word().items()}, tmp_path / "ink.safetensors")
    plain = ours.encode_prompt("a zigzag")
    ours.load_textual_inversion(tmp_path / "zigzag.safetensors")
    expected = ours.encode_prompt("a zigzag")
    ours.unload_textual_inversion()
    ours.load_lora_weights(tmp_path / "ink.safetensors")
    found = ours.encode_prompt("a zigzag")
    ours.unload_lora_weights()
    assert np.array_equal(found, expected) and not np.array_equal(found, plain)


def test_the_refiner_takes_its_own_half_of_a_word(pair, tmp_path):
    _, ours = pair(REFINER)
    for name, tensors in ("both", word()), ("one", {"clip_g": word()["clip_g"]}):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        ours.load_textual_inversion(tmp_path / f"{name}.safetensors")
    both, one, neither = (ours.encode_prompt(f"a {name}") for name in ("both", "one", "cat"))
    assert np.array_equal(both, one) and not np.array_equal(one, neither)
    ours.unload_textual_inversion()


# ---- of another family: one line that names both

@pytest.mark.parametrize("name, tensors, expected", [
    (V2, word(768, 1280), "a learnt word for Stable Diffusion XL, but the model is of another family, Stable Diffusion 2"),
    (V2, {"emb_params": torch.ones(1, 768)}, "it may be for Stable Diffusion v1, but the model is of Stable Diffusion 2"),
    (XL, {"emb_params": torch.ones(1, 768)}, "as for Stable Diffusion v1; the model is of Stable Diffusion XL, whose words "
                                             "have clip_l and clip_g"),
    (XL, {"<x>": torch.ones(1024)}, "as for Stable Diffusion 2; the model is of Stable Diffusion XL"),
    (XL, {"clip_l": torch.ones(1, 64), "clip_g": torch.ones(2, 128)}, "clip_l and clip_g have 1 and 2 vectors"),
    (XL, word(32), "its vectors are 32 wide, but this text encoder's are 64"),
    (XL, word(more=torch.ones(1)), "that is one tensor, or clip_l and clip_g, and here are 3")])
def test_a_word_for_another_family_is_named_with_both(pair, name, tensors, expected, tmp_path):
    save_file(tensors, tmp_path / "zigzag.safetensors")
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        pair(name)[1].load_textual_inversion(tmp_path / "zigzag.safetensors")
    assert "\n" not in str(error.value) and not list(pair(name)[1].words)


def attention(width, key="lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"):
    return {f"{key}.lora_down.weight": torch.ones(4, width), f"{key}.lora_up.weight": torch.ones(128, 4)}


@pytest.mark.parametrize("name, tensors, theirs", [
    (V2, attention(768), "Stable Diffusion v1"), (V2, attention(2048), "Stable Diffusion XL"),
    (V2, attention(128, "lora_te2_text_model_encoder_layers_0_mlp_fc1"), "Stable Diffusion XL"),
    (XL, attention(768), "Stable Diffusion v1"), (XL, attention(1024), "Stable Diffusion 2"),
    (XL, attention(8, "transformer.single_transformer_blocks.0.attn.to_k"), "Flux")])
def test_a_lora_for_another_family_is_named_with_both(pair, name, tensors, theirs, tmp_path):
    path = loras.write(tmp_path / "ink.safetensors", tensors)
    with pytest.raises(UserError, match=f"this LoRA is made for {theirs}.* of another family, {name}"):
        pair(name)[1].load_lora_weights(path)


def test_a_lora_with_several_blocks_is_not_refused_by_the_refiner(pair, tmp_path):
    _, ours = pair(REFINER)
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_1_attn2_to_k"
    ours.load_lora_weights(loras.write(tmp_path / "ink.safetensors", attention(128, key)))
    assert ours.adapters.loaded
    ours.unload_lora_weights()
