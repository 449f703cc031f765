"""What the halves of a guided step, and the steps of a picture, share: the same results from less work."""
import numpy as np
import pytest

from npdiffusion import kernels
from npdiffusion.models.conditioning import Conditioning, repeated
from tests import references
from tests.references import random, relative_error

SAME = 1e-6                        # largest error over largest value: sums of another batch may be ordered otherwise


@pytest.fixture(scope="module", params=["attention at the first level", "attention from the second level on"])
def unet(request):
    later = dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                 up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"))
    settings = references.TINY_UNET | ({} if "first" in request.param else later)
    return references.twin(references.torch_unet(**settings))


def operations(call):
    """call() → [(operation, its arguments)]"""
    seen = []
    with kernels.watched(lambda operation, arguments, result: seen.append((operation, arguments))):
        call()
    return seen


def test_repeated_rows_go_with_every_share_of_the_batch():
    x = random(2, 3)
    assert np.array_equal(repeated(x, 6), np.concatenate([x, x, x])) and repeated(x, 2) is x


@pytest.mark.parametrize("prompts", [2, 3])
@pytest.mark.parametrize("timesteps", [[7.0, 7.0], [999.0, 41.625]])
def test_shared_latents_give_what_repeated_latents_give(each_backend, unet, prompts, timesteps):
    x, context = random(2, 9, 6, 4), random(2 * prompts, 77, 24, seed=1)
    plain = unet(np.concatenate([x] * prompts), timesteps * prompts, context)
    assert relative_error(unet(x, timesteps, context), plain) < SAME


def test_one_time_step_for_all_gives_what_one_for_each_gives(each_backend, unet):
    x, context = random(3, 8, 8, 4), random(3, 77, 24, seed=1)
    assert relative_error(unet(x, 41.625, context), unet(x, [41.625] * 3, context)) < SAME


def test_a_context_gives_what_its_array_gives_in_every_step(each_backend, unet):
    states = random(2, 77, 24, seed=1)
    context = Conditioning(states.copy())
    for step in range(3):
        x = random(1, 8, 8, 4, seed=step)
        assert np.array_equal(unet(x, 10.0 * step, context), unet(x, 10.0 * step, states))
    assert np.array_equal(context.states, states)


def test_keys_and_values_of_a_context_are_computed_in_the_first_step_alone(unet):
    x, context = random(1, 8, 8, 4), Conditioning(random(2, 77, 24, seed=1))
    first, second = ([arguments["weight"] for _, arguments in operations(lambda t=t: unet(x, t, context))
                      if arguments.get("x") is context.states] for t in (2.0, 1.0))
    layers = sum(len(block.attentions) for block in [*unet.down_blocks, unet.mid_block, *unet.up_blocks])
    assert len({id(weight) for weight in first}) == len(first) == 2 * layers and not second


def test_the_batch_is_single_up_to_the_first_cross_attention(unet):
    seen = operations(lambda: unet(random(1, 8, 8, 4), 5.0, Conditioning(random(2, 77, 24, seed=1))))
    inputs = [(operation, next(iter(arguments.values()))) for operation, arguments in seen]
    on_pixels = [(operation, len(x)) for operation, x in inputs if x.ndim > 2 and x.shape[1:] != (77, 24)]
    before, after = on_pixels[:(cross := on_pixels.index(("attention", 2)))], on_pixels[cross:]
    assert [operation for operation, _ in before].count("attention") == 1          # a layer's self-attention comes first
    assert {images for _, images in before} == {1} and {images for _, images in after} == {2}


def test_the_time_embedding_is_activated_once_and_projected_for_one_row(unet):
    seen = operations(lambda: unet(random(2, 8, 8, 4), 5.0, random(4, 77, 24, seed=1)))
    rows = [arguments["x"] for operation, arguments in seen if operation == "linear" and arguments["x"].ndim == 2]
    assert sum(operation == "silu" for operation, _ in seen) == 2          # inside the embedding, and at its end
    assert all(len(x) == 1 for x in rows) and len({id(x) for x in rows[2:]}) == 1


def test_latents_that_cannot_be_shared_are_an_error(unet):
    with pytest.raises(ValueError, match="2 latents cannot be shared by 3 prompts"):
        unet(random(2, 8, 8, 4), 1.0, random(3, 77, 24))
