"""Whose is a tensor of an adapter: from its key to a layer of the model and a role.

    lora_unet_down_blocks_0_attentions_0_proj_in . lora_down.weight                   kohya, A1111, LyCORIS
    lora_unet_input_blocks_1_1_proj_in . lora_down.weight                             with the original names of blocks
    unet.down_blocks.0.attentions.0.proj_in . lora_A.weight                           diffusers, PEFT
    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q _lora.down.weight   diffusers before 0.22

A key is a layer and a suffix. The suffix is the role; a layer can be spelled in a dozen ways, so a table of all
spellings of all layers of the model is made, by rule, and the key is looked up in it: nothing has to be guessed from
underscores that may be dots.
"""
import re

from npdiffusion.checkpoints import families, original_names

LONGEST_KEY = 300

SUFFIXES = [(re.compile(pattern + r"\Z"), role) for pattern, role in (
    (r"\.lora_(up|down|mid)\.weight", r"\1"),
    (r"(?:\.lora|\.lora_linear_layer|_lora)\.(up|down)\.weight", r"\1"),
    (r"\.lora_A(?:\.\w+)?\.weight", "down"),
    (r"\.lora_B(?:\.\w+)?\.weight", "up"),
    (r"\.lora_B(?:\.\w+)?\.bias", "up_bias"),
    (r"\.lora_magnitude_vector(?:\.\w+){0,2}", "magnitude"),
    (r"\.((?:hada|lokr)_(?:w[12](?:_[ab])?|t[12])|dora_scale|alpha|diff_b|diff)", r"\1"),
    (r"\.w_norm", "diff"),
    (r"\.b_norm", "diff_b"))]

# What other programs put around the name of a layer
WRAPPING = re.compile(r"base_model\.model\.|\.processor(?=\.)")

# Of another family if any key has this in it (v1 has one block in each transformer, block 0), or by the context's width
FAMILIES = [(re.compile(pattern), family) for pattern, family in (
    (r"(^|[._])(single_transformer|single|double)_blocks[._]", "Flux"),
    (r"(^|[._])joint_blocks[._]|^lora_te3_|^text_encoder_3\.|^transformer\.", "Stable Diffusion 3"),
    (r"^lora_te2_|^text_encoder_2\.|add_embedding|label_emb|transformer_blocks[._][1-9]", families.XL),
    (r"motion_modules|temporal_transformer", "AnimateDiff"))]

OTHER_KINDS = [(re.compile(pattern), kind) for pattern, kind in (
    (r"\.b?oft_|\.on_input$|\.ia3_l|\.[ab][12]\.weight$|\.vera_", "an adapter of another kind than LoRA, LoHa, LoKr and DoRA"),
    (r"emb_params$|string_to_param|^clip_[gl]$", "a textual inversion, which is used by its name in the prompt"),
    (r"lllite", "a ControlNet of the kind LLLite, which is not supported"),
    (r"control_model\.|controlnet", "a ControlNet, which is loaded as such (--control)"),
    (r"^ip_adapter\.|^image_proj\.", "an IP-Adapter, which is loaded as such (--ip-adapter)"),
    (r"^(adapter\.)?body\.", "a T2I-Adapter, which is loaded as such (--t2i-adapter)"),
    (r"^(first_stage_model|model\.diffusion_model|cond_stage_model)\.", "a complete model and no LoRA"))]


def split_key(key):
    """A key → (layer as the file spells it, role), or None if it has no suffix that is known."""
    if len(key) > LONGEST_KEY:
        return None
    for suffix, role in SUFFIXES:
        found = suffix.search(key)
        if found:
            return WRAPPING.sub("", key[:found.start()]), found.expand(role)
    return None


def spellings(layers, config, family):
    """{spelling: (part, layer)} of all layers of a model

    layers: {part: names of layers as in diffusers}; config: the UNet's; family: its row says what adapters call them
    """
    original, table = original_names.unet_name(config), {}
    for part, found in layers.items():
        row = family.parts[part].lora
        for layer in found:
            names = [layer, row.older(layer)]
            known = [f"{before}{flat(layer)}" for before in row.flat]
            if row.original:
                theirs = original(f"{layer}.weight").removesuffix(".weight")
                known += [f"{before}{flat(theirs)}" for before in row.flat] + [f"{before}{theirs}" for before in row.original]
            known += [before + name for name in names for before in row.dotted]
            table.update(dict.fromkeys(known, (part, layer)))
    return table


def flat(layer):
    return layer.replace(".", "_")


def told_by(table, keys):
    """The first entry of FAMILIES or OTHER_KINDS that any of the keys shows, or None."""
    return next((meaning for pattern, meaning in table if any(pattern.search(key[:LONGEST_KEY]) for key in keys)), None)
