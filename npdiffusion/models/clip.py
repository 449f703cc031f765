"""CLIP's text encoder (Radford et al. 2021, arXiv:2103.00020): a causal transformer, 12 layers of width 768 in SD v1.

    x = token_embedding[ids] + position_embedding
    x = x + attention(layer_norm1(x));  x = x + mlp(layer_norm2(x))       in each layer
    context = final_layer_norm(x)

N prompts, T tokens (77), C channels. Padding is not masked: the UNet was trained to attend to it too.
"""
import numpy as np

from npdiffusion import kernels
from npdiffusion.models.layers import Embedding, LayerNorm, Linear


class CLIPEmbeddings:
    """Token plus position      ids (N, T) → (N, T, C); `vectors`: see `CLIPTextModel`"""
    def __init__(self, config):
        self.token_embedding = Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = Embedding(config.max_position_embeddings, config.hidden_size)

    def __call__(self, ids, vectors=()):
        tokens = self.token_embedding(ids)
        for position, vector in vectors:
            tokens[:, position] = vector
        return tokens + self.position_embedding(np.arange(ids.shape[1]))


class CLIPAttention:
    """Causal self-attention: a token sees itself and those before it      (N, T, C) → (N, T, C)"""
    def __init__(self, config):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, Linear(config.hidden_size, config.hidden_size))
        self.heads = config.num_attention_heads

    def __call__(self, x, residual):
        y = kernels.attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal=True)
        return self.out_proj(y, residual)


class CLIPMLP:
    """(N, T, C) → (N, T, C)"""
    def __init__(self, config):
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)
        self.activation = config.hidden_act                  # quick_gelu in SD v1

    def __call__(self, x, residual):
        activation = getattr(kernels, self.activation)
        return self.fc2(activation(self.fc1(x)), residual)


class CLIPEncoderLayer:
    """(N, T, C) → (N, T, C)"""
    def __init__(self, config):
        self.layer_norm1 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = CLIPAttention(config)
        self.layer_norm2 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)

    def __call__(self, x):
        x = self.self_attn(self.layer_norm1(x), residual=x)
        return self.mlp(self.layer_norm2(x), residual=x)


class CLIPEncoder:
    """(N, T, C) → (N, T, C), without the last `clip_skip` layers"""
    def __init__(self, config):
        self.layers = [CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers)]

    def __call__(self, x, clip_skip=0):
        for layer in self.layers[:len(self.layers) - clip_skip]:
            x = layer(x)
        return x


class CLIPTextModel:
    """Token ids (N, T), integers below `vocab_size`, T ≤ `max_position_embeddings` → hidden states (N, T, C), float32

    clip_skip   how many of the last layers are left out, as in diffusers; the final layer norm is not
    vectors     [(position, vector (C,)), ...] that stand in place of what the table has for the ids there: learnt words
                (textual inversion, Gal et al. 2022, arXiv:2208.01618)
    """
    def __init__(self, config):
        self.config = config
        self.embeddings = CLIPEmbeddings(config)
        self.encoder = CLIPEncoder(config)
        self.final_layer_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, ids, clip_skip=0, vectors=()):
        return self.final_layer_norm(self.encoder(self.embeddings(ids, vectors), clip_skip))
