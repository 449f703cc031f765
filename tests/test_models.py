"""Every block and every model against diffusers and transformers, at tiny sizes and at the size of Stable Diffusion v1."""
import gc

import numpy as np
import pytest
import torch
from diffusers.models import attention as torch_attention
from diffusers.models import resnet as torch_resnet
from diffusers.models.transformers import Transformer2DModel as TorchTransformer2DModel

from npdiffusion import kernels
from npdiffusion.models import parameters, resnet, transformer
from npdiffusion.models import vae as our_vae
from npdiffusion.models.conditioning import Conditioning
from tests import references
from tests.differences import agree
from tests.references import channels_first, channels_last, random, relative_error, twin

BLOCK, MODEL = 1e-5, 1e-4          # largest error over largest value, float32


def same_weights(ours, theirs, rename=lambda name: name):
    references.make_demanding(theirs)
    parameters.load(ours, {rename(name): references.Tensor(t) for name, t in theirs.state_dict().items()}, "block")
    return ours, theirs


# --- blocks ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("channels", [(32, 48), (40, 40)])
def test_resnet_block_with_time_embedding(each_backend, channels):
    ours, theirs = same_weights(
        resnet.ResnetBlock2D(*channels, groups=8, eps=1e-5, time_channels=20),
        torch_resnet.ResnetBlock2D(in_channels=channels[0], out_channels=channels[1], groups=8, eps=1e-5, temb_channels=20))
    x, e = random(2, 7, 5, channels[0]), random(2, 20, seed=1)
    expected = theirs(channels_first(x), torch.from_numpy(e))          # theirs begins with the SiLU that ours is given
    agree("blocks", "resnet block with time embedding", ours(x, kernels.silu(e)), channels_last(expected), BLOCK, relative=True)


def test_resnet_block_of_the_vae_has_no_time_embedding_and_a_small_epsilon(each_backend):
    ours, theirs = same_weights(
        resnet.ResnetBlock2D(16, 16, groups=4, eps=our_vae.EPS),
        torch_resnet.ResnetBlock2D(in_channels=16, out_channels=16, groups=4, eps=1e-6, temb_channels=None))
    x = 1e-3 * random(1, 6, 9, 16)          # so small that 1e-5 in place of 1e-6 would show
    agree("blocks", "resnet block of the vae has no time embedding and a small epsilon",
          ours(x), channels_last(theirs(channels_first(x), None)), BLOCK, relative=True)


def test_downsampling_pads_all_sides_in_the_unet_and_two_in_the_vae(each_backend):
    for padding, torch_padding in (((1, 1, 1, 1), 1), ((0, 1, 0, 1), 0)):
        ours, theirs = same_weights(resnet.Downsample2D(8, padding),
                                    torch_resnet.Downsample2D(8, use_conv=True, padding=torch_padding, name="op"))
        x = random(1, 9, 6, 8)
        agree("blocks", "downsampling pads all sides in the unet and two in the vae",
              ours(x), channels_last(theirs(channels_first(x))), BLOCK, relative=True)


@pytest.mark.parametrize("size", [(10, 14), (9, 13)])
def test_upsampling_aims_at_any_size(each_backend, size):
    ours, theirs = same_weights(resnet.Upsample2D(8), torch_resnet.Upsample2D(8, use_conv=True))
    x = random(2, 5, 7, 8)
    agree("blocks", "upsampling aims at any size",
          ours(x, *size), channels_last(theirs(channels_first(x), output_size=size)), BLOCK, relative=True)


def test_feed_forward_gates_with_exact_gelu(each_backend):
    ours, theirs = same_weights(transformer.FeedForward(24), torch_attention.FeedForward(24, activation_fn="geglu"))
    x = 3 * random(2, 11, 24)
    expected = theirs(torch.from_numpy(x)).detach().numpy() + x
    agree("blocks", "feed forward gates with exact gelu", ours(x, residual=x), expected, BLOCK, relative=True)


def test_spatial_transformer(each_backend):
    ours, theirs = same_weights(
        transformer.Transformer2DModel(32, heads=4, context_channels=20, groups=8),
        TorchTransformer2DModel(num_attention_heads=4, attention_head_dim=8, in_channels=32, cross_attention_dim=20,
                                norm_num_groups=8))
    x, context = random(2, 5, 7, 32), random(2, 77, 20, seed=1)
    expected = theirs(channels_first(x), encoder_hidden_states=torch.from_numpy(context)).sample
    agree("blocks", "spatial transformer", ours(x, Conditioning(context)), channels_last(expected), BLOCK, relative=True)


# --- models, tiny ----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def tiny():
    return {"unet": references.torch_unet(**references.TINY_UNET), "vae": references.torch_vae(**references.TINY_VAE),
            "text": references.torch_text_encoder(**references.TINY_TEXT)}


def both_unets(theirs, ours, height, width, timesteps):
    x, context = random(len(timesteps), height, width, 4), random(len(timesteps), 77, ours.config.cross_attention_dim, seed=1)
    with torch.no_grad():
        expected = theirs(channels_first(x), torch.tensor(timesteps), torch.from_numpy(context)).sample
    found = ours(x, np.array(timesteps), context)
    assert found.dtype == np.float32
    return found, channels_last(expected)


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (6, 3)])
def test_tiny_unet_at_square_odd_and_non_square_latents(each_backend, tiny, size):
    found, expected = both_unets(tiny["unet"], twin(tiny["unet"]), *size, timesteps=[999.0, 41.625])
    agree("models", f"tiny UNet, latents of {size}", found, expected, BLOCK, relative=True)


@pytest.mark.parametrize("changes", [
    dict(attention_head_dim=(2, 4, 8)), dict(layers_per_block=1), dict(flip_sin_to_cos=False, freq_shift=1),
    dict(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)), dict(norm_eps=1e-3)])
def test_tiny_unet_of_other_configurations(tiny, changes):
    theirs = references.torch_unet(**references.TINY_UNET | changes)
    found, expected = both_unets(theirs, twin(theirs), 8, 12, timesteps=[500.0])
    agree("models", f"tiny UNet with {list(changes)}", found, expected, BLOCK, relative=True)


def test_unet_of_a_batch_equals_unet_of_each(each_backend, tiny):
    ours = twin(tiny["unet"])
    x, context = random(3, 8, 8, 4), random(3, 77, 24, seed=1)
    together = ours(x, 10.0, context)
    apart = np.concatenate([ours(x[i:i + 1], 10.0, context[i:i + 1]) for i in range(3)])
    assert relative_error(together, apart) < BLOCK


def test_residuals_can_be_added_between_the_way_down_and_the_way_up(each_backend, tiny):
    """As a ControlNet does (Zhang et al. 2023, arXiv:2302.05543)."""
    ours, x, states = twin(tiny["unet"]), random(2, 8, 6, 4), random(2, 77, 24, seed=1)
    conditioning, time_embedding = Conditioning(states), ours.embed_time([10.0, 500.0], Conditioning(states))
    x_down, skips = ours.down(ours.conv_in(x), time_embedding, conditioning)
    middle = ours.mid_block(x_down, time_embedding, conditioning)
    for_skips, for_middle = [random(*skip.shape, seed=i) for i, skip in enumerate(skips)], random(*middle.shape, seed=99)
    skips = [skip + residual for skip, residual in zip(skips, for_skips)]
    found = ours.conv_out(ours.conv_norm_out.silu(ours.up(middle + for_middle, skips, time_embedding, conditioning)))
    with torch.no_grad():
        expected = tiny["unet"](channels_first(x), torch.tensor([10.0, 500.0]), torch.from_numpy(states),
                                down_block_additional_residuals=[channels_first(residual) for residual in for_skips],
                                mid_block_additional_residual=channels_first(for_middle)).sample
    agree("models", "residuals can be added between the way down and the way up",
          found, channels_last(expected), BLOCK, relative=True)


def test_unet_leaves_its_arguments_alone(each_backend, tiny):
    ours, x, context = twin(tiny["unet"]), random(1, 8, 8, 4), random(1, 77, 24, seed=1)
    before = x.copy(), context.copy()
    ours(x, 10.0, context)
    assert np.array_equal(x, before[0]) and np.array_equal(context, before[1])


def vae_errors(theirs, ours, height, width):
    images = np.tanh(random(1, height, width, 3))
    with torch.no_grad():
        posterior = theirs.encode(channels_first(images)).latent_dist
        expected = theirs.decode(posterior.mean).sample
    mean, logvar = ours.encode(images)
    decoded = ours.decode(channels_last(posterior.mean) * ours.config.scaling_factor)
    assert mean.dtype == logvar.dtype == decoded.dtype == np.float32
    return (relative_error(mean, channels_last(posterior.mean)), relative_error(logvar, channels_last(posterior.logvar)),
            relative_error(decoded, channels_last(expected)))


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_tiny_vae_encodes_and_decodes(each_backend, tiny, size):
    assert max(vae_errors(tiny["vae"], twin(tiny["vae"]), *size)) < BLOCK


def test_vae_latents_are_a_scaled_sample_of_the_posterior(tiny):
    ours, images, noise = twin(tiny["vae"]), np.tanh(random(2, 16, 16, 3)), random(2, 4, 4, 4, seed=1)
    with torch.no_grad():
        posterior = tiny["vae"].encode(channels_first(images)).latent_dist
    expected = 0.3 * (posterior.mean + posterior.std * channels_first(noise))
    agree("models", "vae latents are a scaled sample of the posterior",
          ours.latents(images, lambda: noise), channels_last(expected), BLOCK, relative=True)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_tiny_text_encoder(each_backend, activation):
    theirs = references.torch_text_encoder(**references.TINY_TEXT | dict(hidden_act=activation))
    ids = np.random.default_rng(0).integers(0, 600, (2, 77))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).last_hidden_state.numpy()
    found = twin(theirs)(ids)
    assert found.dtype == np.float32 and relative_error(found, expected) < BLOCK


def test_text_encoder_gives_the_states_of_every_layer_and_a_pooled_one(each_backend, tiny):
    ours, ids = twin(tiny["text"]), np.random.default_rng(0).integers(0, 598, (3, 77))
    for row, end in zip(ids, (3, 40, 76)):
        row[end:] = 599                                  # the end token, also for padding
    with torch.no_grad():
        expected = tiny["text"](torch.from_numpy(ids), output_hidden_states=True)
    found = ours.hidden_states(ids)
    assert len(found) == len(expected.hidden_states) == 3
    for state, theirs in zip(found, expected.hidden_states):
        agree("models", "text encoder gives the states of every layer and a pooled one",
              state, theirs.numpy(), BLOCK, relative=True)
    agree("models", "text encoder gives the states of every layer and a pooled one",
          ours.pooled(ours(ids), ids), expected.pooler_output.numpy(), BLOCK, relative=True)


def test_text_encoder_is_causal(tiny):
    ours, ids = twin(tiny["text"]), np.random.default_rng(0).integers(0, 600, (1, 77))
    changed = ids.copy()
    changed[0, 40:] = 5
    before, after = ours(ids), ours(changed)
    agree("models", "text encoder is causal", after[:, :40], before[:, :40], BLOCK, relative=True)
    assert relative_error(after[:, 40:], before[:, 40:]) > 1e-2


# --- models, at the size of Stable Diffusion v1 ----------------------------------------------------------------------

def test_full_size_unet():
    theirs = references.torch_unet(**references.FULL_UNET)
    ours = twin(theirs)
    found, expected = both_unets(theirs, ours, 24, 16, timesteps=[999.0, 41.625])
    del theirs, ours
    gc.collect()
    agree("models", "UNet of v1", found, expected, MODEL, relative=True)


def test_full_size_vae():
    theirs = references.torch_vae(**references.FULL_VAE)
    assert max(vae_errors(theirs, twin(theirs), 192, 128)) < MODEL


def test_full_size_text_encoder():
    theirs = references.torch_text_encoder(**references.FULL_TEXT)
    ids = np.random.default_rng(0).integers(0, 49408, (2, 77))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).last_hidden_state.numpy()
    agree("models", "full size text encoder", twin(theirs)(ids), expected, MODEL, relative=True)
