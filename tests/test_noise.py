"""Noise: the same numbers as torch's seeded CPU generator, one generator per image."""
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from npdiffusion.diffusion.noise import NumpyGenerator, PhiloxGenerator, TorchGenerator, generator, latent_noise
from npdiffusion.diffusion.noise.brownian import BrownianPath
from npdiffusion.diffusion.noise.latents import slerp
from npdiffusion.diffusion.noise.philox import philox
from npdiffusion.errors import UserError
from tests.differences import agree

KINDS = ["torch", "a1111", "numpy"]


def torch_normal(seed, *shapes):
    torch = pytest.importorskip("torch")
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=source).numpy() for shape in shapes]


def assert_near(ours, theirs):
    """torch's path without AVX2 rounds the angle differently: it is up to 2.4e-6 away, even from torch itself."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 if torch_uses_avx2() else 5e-6)


def torch_uses_avx2():
    return pytest.importorskip("torch").backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@pytest.mark.parametrize("size", [16, 32, 17, 31, 40, 1000, 4 * 64 * 64, 4 * 13 * 9])
def test_long_draw_equals_torch_for_any_size(size):
    assert_near(TorchGenerator(3).normal(size), torch_normal(3, size)[0])


@pytest.mark.parametrize("size", range(16))
def test_short_draw_equals_torch_to_the_last_bit(size):
    assert np.array_equal(TorchGenerator(5).normal(size), torch_normal(5, size)[0])


def test_successive_draws_continue_the_sequence_as_in_torch():
    shapes = [(3,), (4, 8, 8), (5,), (2, 1, 1), (17,), (1,), (0,), (7, 3), (1,)]       # odd short draws keep a value
    ours = TorchGenerator(11)
    for shape, expected in zip(shapes, torch_normal(11, *shapes)):
        assert_near(ours.normal(shape), expected)


def test_a_million_values_are_within_three_units_in_the_last_place_of_torch():
    ours, (theirs,) = TorchGenerator(7).normal(10**6), torch_normal(7, 10**6)
    assert_near(ours, theirs)
    if torch_uses_avx2():
        assert np.max(np.abs(ours.astype(np.float64) - theirs) / np.spacing(np.abs(theirs))) <= 3
        assert np.mean(ours == theirs) > 0.8


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1, 2**32, 2**32 + 42, 2**63, 2**64 - 1, -1, -42, -2**63])
def test_every_seed_that_torch_takes_gives_the_numbers_of_torch(seed):
    assert_near(TorchGenerator(seed).normal(20), torch_normal(seed, 20)[0])


def test_only_the_low_32_bits_of_a_torch_seed_count():
    assert np.array_equal(TorchGenerator(42).normal(20), TorchGenerator(2**40 + 42).normal(20))
    assert not np.array_equal(TorchGenerator(42).normal(20), TorchGenerator(43).normal(20))


def test_all_64_bits_of_a_numpy_seed_count():
    assert not np.array_equal(NumpyGenerator(42).normal(20), NumpyGenerator(2**40 + 42).normal(20))


def test_numpy_generator_gives_the_numbers_of_default_rng():
    expected = np.random.default_rng(9).standard_normal((2, 3), dtype=np.float32)
    assert np.array_equal(NumpyGenerator(9).normal((2, 3)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (3,), (4, 5, 6), (0, 4), 40])
def test_noise_is_float32_of_the_shape_asked_for(kind, shape):
    values = generator(kind, 1).normal(shape)
    assert values.dtype == np.float32 and values.shape == np.empty(shape).shape


@pytest.mark.parametrize("kind", KINDS)
def test_noise_has_mean_zero_and_variance_one_and_no_correlation_within_blocks(kind):
    blocks = generator(kind, 2).normal((20_000, 16)).astype(np.float64)
    assert abs(blocks.mean()) < 0.01 and abs(blocks.var() - 1) < 0.015          # five standard errors: 0.009 and 0.013
    assert np.abs(np.corrcoef(blocks.T) - np.eye(16)).max() < 0.036             # five standard errors


def test_first_word_zero_in_the_low_bits_gives_a_finite_number():
    source = TorchGenerator(0)
    source._uniform = lambda count: np.zeros(count, np.float32)
    assert np.isfinite(source.normal(16)).all()
    source._uniform = lambda count: np.full(count, 1 - 2**-24, np.float32)
    assert np.isfinite(source.normal(16)).all()


def test_latent_noise_is_torchs_channels_first_noise_moved_to_channels_last():
    expected = np.stack([torch_normal(seed, (4, 6, 5))[0] for seed in (8, 9)]).transpose(0, 2, 3, 1)
    noise = latent_noise("torch", [8, 9], height=6, width=5)()
    assert noise.flags.c_contiguous and noise.dtype == np.float32
    assert_near(noise, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_a_batch_depends_on_its_own_seed_alone(kind):
    batch, alone = (latent_noise(kind, seeds, 8, 8, subseeds=[seed + 10 for seed in seeds], strength=0.3)
                    for seeds in ([1, 2, 3], [2]))
    for draw in (lambda noise: noise.start(), lambda noise: noise(), lambda noise: noise.path(10.0, 0.1)(5.0, 1.0)):
        together, single = draw(batch), draw(alone)
        assert np.array_equal(together[1:2], single) and not np.array_equal(together[:1], single)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [2**64, -2**63 - 1, 1.5, "7", None])
def test_a_seed_out_of_range_or_not_whole_is_the_users_error(kind, seed):
    with pytest.raises(UserError, match="seed"):
        generator(kind, seed)


def test_an_unknown_kind_is_named_with_the_choices():
    with pytest.raises(UserError, match="'dice'.*torch, a1111, numpy"):
        generator("dice", 1)


def test_numpys_seeded_words_are_the_mersenne_twisters():
    """The C++ standard fixes the 10,000th word for seed 5489."""
    assert np.random.RandomState(5489).randint(2**32, size=10_000, dtype=np.uint32)[-1] == 4123659995


# ---- the web interface's numbers

@pytest.mark.parametrize("counter, key, words", [                     # the known answers that come with Random123
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
     [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1])])
def test_philox_gives_the_known_answers(counter, key, words):
    assert philox(np.array(counter)[:, None], key)[:, 0].tolist() == words


def test_philox_normals_are_those_that_the_web_interface_documents():
    documented = [[-0.92466259, -0.42534415, -2.6438457, 0.14518388], [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
                  [-1.07454231, -0.36314407, -1.67105067, 2.26550497]]        # which are those of a GPU for seed 0
    agree("seeds", "a1111: documented numbers of seed 0", PhiloxGenerator(0).normal((3, 4)), documented, 2e-6)


def test_all_64_bits_of_an_a1111_seed_count_and_each_draw_is_another_one():
    assert not np.array_equal(PhiloxGenerator(42).normal(20), PhiloxGenerator(2**40 + 42).normal(20))
    source = PhiloxGenerator(42)
    assert not np.array_equal(source.normal(20), source.normal(20))
    assert np.array_equal(PhiloxGenerator(42).normal(20)[:10], PhiloxGenerator(42).normal(10))      # element by element


def test_the_web_interface_draws_the_start_first_and_nothing_for_the_posterior():
    noise = latent_noise("a1111", [5], 6, 5)
    assert not noise.posterior().any()
    assert np.array_equal(noise.start()[0], PhiloxGenerator(5).normal((4, 6, 5)).transpose(1, 2, 0))
    like_diffusers = latent_noise("torch", [5], 6, 5)
    assert_near(like_diffusers.posterior()[0], torch_normal(5, (4, 6, 5))[0].transpose(1, 2, 0))


# ---- sub-seeds

def test_variations_equal_the_formula_of_the_web_interface_in_torch():
    torch = pytest.importorskip("torch")
    low, high = (torch.from_numpy(PhiloxGenerator(seed).normal((4, 6, 5))) for seed in (1, 2))
    cosine = torch.nn.functional.cosine_similarity(low, high, dim=1)                       # along the columns
    angle = torch.acos(cosine)[:, None]
    for share in (0.1, 0.5, 0.9):
        expected = (torch.sin((1 - share) * angle) * low + torch.sin(share * angle) * high) / torch.sin(angle)
        noise = latent_noise("a1111", [1], 6, 5, subseeds=[2], strength=share).start()
        agree("seeds", f"variation of strength {share}", noise[0].transpose(2, 0, 1), expected.numpy(), 1e-5)


def test_variations_go_from_the_seed_to_the_sub_seed_and_keep_their_size():
    low, high = (PhiloxGenerator(seed).normal((4, 64, 64)) for seed in (1, 2))
    assert np.abs(slerp(0.0, low, high) - low).max() < 1e-5 and np.abs(slerp(1.0, low, high) - high).max() < 1e-5
    assert slerp(0.5, low, high).std() == pytest.approx(1, abs=0.02)                       # a straight line: 0.71
    assert np.isfinite(slerp(0.5, low, low)).all()


# ---- paths

@pytest.mark.filterwarnings("ignore:Should have t")                  # of the path's ends in float32
def test_a_brownian_path_equals_torchsdes():
    torch = pytest.importorskip("torch")
    import torchsde  # of the test extra, as torch is
    low, high = float(np.float32(0.0291675)), float(np.float32(14.614641))
    theirs = torchsde.BrownianInterval(t0=low, t1=high, size=(4, 6, 5), dtype=torch.float32, entropy=1234, tol=1e-6,
                                       pool_size=24, halfway_tree=True)
    ours = BrownianPath(low, high, 1234, lambda seed: TorchGenerator(seed).normal((4, 6, 5)))
    for a, b in ((9.3, high), (5.12345678, 9.3), (low, 5.1), (1.0, 1.5), (2.0, 9.3)):
        agree("seeds", "Brownian path", ours.increment(a, b), theirs(a, b).numpy() / (b - a) ** 0.5, 1e-5)


def test_increments_of_a_path_are_normal_independent_and_add_up():
    path = BrownianPath(0.1, 10.0, 3, lambda seed: np.random.default_rng(seed).standard_normal(40_000))
    first, second = path.increment(8.0, 5.0), path.increment(5.0, 1.0)
    assert first.std() == pytest.approx(1, abs=0.02) and second.std() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.025
    assert np.allclose(path.increment(8.0, 1.0) * 7**0.5, first * 3**0.5 + second * 4**0.5)


# ---- what has no angle

@pytest.mark.parametrize("shape", [(4, 1, 6), (4, 6, 1), (4, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_variations_of_latents_one_pixel_high_or_wide_are_finite(kind, shape):
    channels, height, width = shape
    for seed in range(20):
        found = latent_noise(kind, [seed], height, width, channels, subseeds=[seed + 100], strength=0.3).start()
        assert np.isfinite(found).all() and np.abs(found).max() < 6


def test_columns_in_one_line_and_columns_of_zeros_are_mixed_in_a_straight_line_beside_the_others_arcs():
    low, high = (PhiloxGenerator(seed).normal((4, 6, 5)) for seed in (1, 2))
    plain = slerp(0.25, low, high)
    for changed in -2 * low, 3 * low, 0 * low:
        other = high.copy()
        other[:, :, 1] = changed[:, :, 1]
        found = slerp(0.25, low, other)
        assert found.dtype == np.float32 and np.allclose(found[:, :, 1], (0.75 * low + 0.25 * other)[:, :, 1], atol=1e-6)
        assert np.array_equal(np.delete(found, 1, axis=2), np.delete(plain, 1, axis=2))


def test_a_path_is_the_same_however_often_it_is_looked_at():
    path = BrownianPath(0.1, 10.0, 3, lambda seed: np.random.default_rng(seed).standard_normal(6))
    times = np.linspace(9.9, 0.2, 50).tolist()
    walk = [path.increment(a, b) for a, b in pairwise(times)]
    again = [path.increment(a, b) for a, b in reversed(list(pairwise(times)))]
    assert np.array_equal(walk, again[::-1])


def test_a_walk_along_a_path_looks_at_each_time_once_and_holds_few_arrays():
    draws, size = [], 100_000
    tracemalloc.start()
    walked, looked = (BrownianPath(0.1, 10.0, 3, lambda seed: draws.append(seed) or np.ones(size)) for _ in range(2))
    times = np.linspace(9.9, 0.2, 50).tolist()
    for a, b in pairwise(times):
        walked.increment(a, b)
    held, along_the_walk = tracemalloc.get_traced_memory()[0], len(draws)
    tracemalloc.stop()
    for time in times:
        looked.at(time)
    assert held < 6 * 8 * size
    assert along_the_walk - 2 == len(draws) - along_the_walk
