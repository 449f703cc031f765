"""What hooks in diffusers see of the cross-attention of a UNet while it makes a picture: the reference of attention maps."""
import numpy as np


class Hook:
    """diffusers' attention, with its probabilities kept for each call."""
    def __init__(self, name, seen):
        self.name, self.seen = name, seen

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **others):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)))
        p = attn.get_attention_scores(q, k, attention_mask)
        if encoder_hidden_states is not None:
            self.seen.setdefault(self.name, []).append(p.reshape(len(hidden_states), -1, *p.shape[1:]).numpy())
        return attn.to_out[0](attn.batch_to_head_dim(p @ v))


def hooked(unet):
    """Hooks in a UNet of diffusers → {layer: [(prompts, heads, T, S) of each step]}, filled while it makes a picture"""
    seen = {}
    unet.set_attn_processor({name: Hook(name, seen) for name in unet.attn_processors})
    return seen


def of_level(seen, h, w, heads=None):
    """The mean over the layers of a level, of the prompt's half      → (steps, heads, S, h, w)

    heads: to which neighbouring heads are averaged
    """
    found = np.mean([[step[-1] for step in steps] for steps in seen.values() if steps[0].shape[2] == h * w], axis=0)
    found = np.moveaxis(found, -1, 2).reshape(*found.shape[:2], -1, h, w)
    return found if heads is None else found.reshape(len(found), heads, -1, *found.shape[2:]).mean(axis=2)
