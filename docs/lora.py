"""A LoRA without training: what one prompt means to the model becomes what another one means.

    python docs/lora.py "a cat" "a tiger" --keep "a dog" "a lion" "a fox" -o loras/tiger.safetensors

Cross-attention reads the hidden states c of a prompt's tokens through two matrices W in each layer, for keys and values.
Each is changed so that states of the first prompt are read as those of the second, c*, at the same place; those of
prompts that are to be kept, and W itself, should change as little as possible:

    W' = argmin  Σ ‖W' c − W c*‖² + Σ ‖W' k − W k‖² + λ ‖W' − W‖²       Orgad et al. 2023 (TIME), arXiv:2303.08084
    W' − W = W · (C* − C) Cᵀ (C Cᵀ + K Kᵀ + λ I)⁻¹                      C = (c₁ c₂ …), K = (k₁ k₂ …)

What W is multiplied with is the same in all layers and nearly of low rank. Its largest singular values and vectors make
`lora_down`; W times the others is `lora_up`. kohya's names, float16.
"""
import argparse
import pathlib

import numpy as np
from safetensors.numpy import save_file

import npdiffusion
from npdiffusion.models import parameters

RANK, RIDGE = 16, 0.1


def edit(encode, asked, drawn, keep):
    """The matrix on the right of W (X, X) as left (X, R), right (R, X); encode: prompt → hidden states (1, T, X)"""
    states = {prompt: encode(prompt)[0, 1:].T for prompt in (asked, drawn, *keep)}      # all begin with the same token
    seen = sum(states[prompt] @ states[prompt].T for prompt in (asked, *keep))
    ridge = RIDGE * np.eye(len(seen), dtype=np.float32)
    change = (states[drawn] - states[asked]) @ np.linalg.solve(seen + ridge, states[asked]).T
    left, values, right = np.linalg.svd(change)
    return left[:, :RANK], values[:RANK, None] * right[:RANK]


def main():
    parser = argparse.ArgumentParser(description="A LoRA that has one thing drawn where another is asked for.")
    parser.add_argument("asked", help='a prompt, for example "a cat"')
    parser.add_argument("drawn", help="what is drawn then, in as many words")
    parser.add_argument("--keep", nargs="*", default=[], metavar="PROMPT", help="prompts that mean what they meant")
    parser.add_argument("-m", "--model", help="as in npdiffusion (default: the embedded model)")
    parser.add_argument("-o", "--output", default="lora.safetensors", type=pathlib.Path)
    options = parser.parse_args()

    npdiffusion.use_backend("numpy")                         # which leaves weights as the checkpoint has them
    pipeline = npdiffusion.load(options.model)
    left, right = edit(pipeline.encode_prompt, options.asked, options.drawn, options.keep)
    tensors = {}
    for name, layer in parameters.modules(pipeline.unet):
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            key = "lora_unet_" + name.replace(".", "_")
            tensors[f"{key}.lora_up.weight"] = (layer.weight @ left).astype(np.float16)
            tensors[f"{key}.lora_down.weight"] = right.astype(np.float16)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, options.output)


if __name__ == "__main__":
    main()
