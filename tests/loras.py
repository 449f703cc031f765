"""LoRA files with random numbers, in the spellings of the programs that write them, for torch models."""
import torch
from safetensors.torch import save_file

OLD_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")


def layers(models, wanted=lambda name, layer: True, parts=("unet", "text_encoder")):
    """(part, name, layer) of all linear layers and convolutions of these models that are wanted."""
    for part in parts:
        for name, layer in models[part].named_modules():
            if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) and wanted(name, layer):
                yield part, name, layer


def is_attention(name, layer):
    return name.endswith(ATTENTION)


def pairs(models, wanted=is_attention, rank=4, seed=0, parts=("unet", "text_encoder")):
    """{(part, name): (down, up)}, random; as large as is visible in the results"""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for part, name, layer in layers(models, wanted, parts):
        outputs, inputs, *taps = layer.weight.shape
        down = torch.randn(rank, inputs, *taps, generator=random)
        up = torch.randn(outputs, rank, *[1] * len(taps), generator=random)
        found[part, name] = down * 0.2, up * 0.2
    return found


def kohya_name(part, name):
    return ("lora_unet_" if part == "unet" else "lora_te_text_model_") + name.replace(".", "_")


def kohya(found, alpha=2.0, spell=kohya_name):
    """As kohya's trainer writes it; `alpha` None leaves it out"""
    tensors = {}
    for key, (down, up) in found.items():
        tensors[f"{spell(*key)}.lora_down.weight"], tensors[f"{spell(*key)}.lora_up.weight"] = down, up
        if alpha is not None:
            tensors[f"{spell(*key)}.alpha"] = torch.tensor(alpha)
    return tensors


def peft(found):
    """As diffusers has written it since 0.22"""
    prefix = {"unet": "unet", "text_encoder": "text_encoder.text_model"}
    return {f"{prefix[part]}.{name}.lora_{letter}.weight": tensor
            for (part, name), pair in found.items() for letter, tensor in zip("AB", pair)}


def old_diffusers(found):
    """As diffusers wrote it before: attention processors own their LoRA"""
    tensors = {}
    for (part, name), pair in found.items():
        path, _, last = name.removesuffix(".0").rpartition(".")
        spelled = {"unet": f"unet.{path}.processor.{last}",
                   "text_encoder": f"text_encoder.text_model.{path}.{OLD_TEXT.get(last)}"}[part]
        for direction, tensor in zip(("down", "up"), pair):
            tensors[f"{spelled}_lora.{direction}.weight"] = tensor
    return tensors


def write(path, tensors, metadata=None):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path
