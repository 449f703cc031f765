"""CLIP's text encoder (Radford et al. 2021, arXiv:2103.00020): a causal transformer, 12 layers of width 768 in SD v1.

OpenCLIP's are alike, but larger and with GELU: 23 layers of width 1024 in SD 2, 32 of width 1280 for XL's second one.

    x = token_embedding[ids] + position_embedding
    x = x + attention(layer_norm1(x));  x = x + mlp(layer_norm2(x))       in each layer
    context = final_layer_norm(x)

N prompts, T tokens (77), C channels. Padding is not masked: the UNet was trained to attend to it too.
What CLIP was trained for, and what follows from it: docs/notes/12-words.md
"""
from collections.abc import Iterable
from typing import Any

import numpy as np

from npdiffusion import kernels
from npdiffusion.kernels.arrays import Array
from npdiffusion.models import expected
from npdiffusion.models.configs import CLIPTextConfig
from npdiffusion.models.layers import Embedding, LayerNorm, Linear
from npdiffusion.models.tree import Module

Vectors = Iterable[tuple[Any, Array]]        # (positions, what stands there instead of the token's own embedding)


class CLIPEmbeddings(Module):
    """Embedding of the token plus that of the position      ids (N, T) → (N, T, C); vectors: see `CLIPTextModel`"""
    def __init__(self, config: CLIPTextConfig) -> None:
        self.token_embedding = Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = Embedding(config.max_position_embeddings, config.hidden_size)

    def __call__(self, ids: Array, vectors: Vectors = ()) -> Array:
        tokens = self.token_embedding(ids)
        for position, vector in vectors:
            tokens[:, position] = vector
        return tokens + self.position_embedding(np.arange(ids.shape[1]))


class CLIPAttention(Module):
    """Self-attention; causal: a token sees itself and those before it      (N, T, C) → (N, T, C)"""
    def __init__(self, config: Any, causal: bool = True) -> None:
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, Linear(config.hidden_size, config.hidden_size))
        self.heads, self.causal = config.num_attention_heads, causal

    def __call__(self, x: Array, residual: Array) -> Array:
        y = kernels.attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal=self.causal)
        return self.out_proj(y, residual)


class CLIPMLP(Module):
    """(N, T, C) → (N, T, C)"""
    def __init__(self, config: Any) -> None:
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)
        self.activation = config.hidden_act                  # quick_gelu in SD v1

    def __call__(self, x: Array, residual: Array) -> Array:
        activation = getattr(kernels, self.activation)
        return self.fc2(activation(self.fc1(x)), residual)


class CLIPEncoderLayer(Module):
    """(N, T, C) → (N, T, C)"""
    def __init__(self, config: Any, causal: bool = True) -> None:
        self.layer_norm1 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = CLIPAttention(config, causal)
        self.layer_norm2 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)

    def __call__(self, x: Array) -> Array:
        x = self.self_attn(self.layer_norm1(x), residual=x)
        return self.mlp(self.layer_norm2(x), residual=x)


class CLIPEncoder(Module):
    """(N, T, C) → a list: the input, then the output of each layer but the last `clip_skip`, all (N, T, C)"""
    def __init__(self, config: Any, causal: bool = True) -> None:
        self.layers = [CLIPEncoderLayer(config, causal) for _ in range(config.num_hidden_layers)]

    def __call__(self, x: Array, clip_skip: int = 0) -> list[Array]:
        states = [x]
        for layer in self.layers[:len(self.layers) - clip_skip]:
            states.append(layer(states[-1]))
        return states


class CLIPTextModel(Module):
    """Token ids (N, T), integers below `vocab_size`, T ≤ `max_position_embeddings` → hidden states (N, T, C), float32

    clip_skip   how many of the last layers are left out, as in diffusers; the final layer norm never is
    vectors     [(position, vector (C,)), ...]: embeddings that replace those of the ids there, for learnt words
                (textual inversion, Gal et al. 2022, arXiv:2208.01618)
    """
    def __init__(self, config: CLIPTextConfig) -> None:
        self.config = config
        self.embeddings = CLIPEmbeddings(config)
        self.encoder = CLIPEncoder(config)
        self.final_layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, ids: Array, clip_skip: int = 0, vectors: Vectors = ()) -> Array:
        return self.final_layer_norm(self.hidden_states(ids, clip_skip, vectors)[-1])

    def hidden_states(self, ids: Array, clip_skip: int = 0, vectors: Vectors = ()) -> list[Array]:
        """A list: the embeddings, then every layer's output, (N, T, C) without the final layer norm; [-2] is the penultimate"""
        expected.ids(ids, self.config.max_position_embeddings)
        return self.encoder(self.embeddings(ids, vectors), clip_skip)

    def pooled(self, states: Array, ids: Array) -> Array:
        """What stands for a prompt as a whole: the state of its first end token      (N, T, C), ids (N, T) → (N, C)

        states: with the final layer norm, as a call returns them. The end token has the highest id of the vocabulary, unless
        the configuration names another.
        """
        end = self.config.eos_token_id
        ends = np.argmax(ids if end == 2 else ids == end, axis=-1)
        return states[np.arange(len(ids)), ends]


class CLIPTextModelWithProjection(CLIPTextModel):
    """The same, with pooled vectors that are projected to where CLIP compares texts with pictures      → (N, P)"""
    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(config)
        self.text_projection = Linear(config.hidden_size, config.projection_dim, bias=False)

    def pooled(self, states: Array, ids: Array) -> Array:
        return self.text_projection(super().pooled(states, ids))
