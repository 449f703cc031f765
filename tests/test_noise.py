"""Noise: the same numbers as torch's seeded CPU generator, one generator per image."""
import numpy as np
import pytest

from npdiffusion.errors import UserError
from npdiffusion.noise import NumpyGenerator, TorchGenerator, generator, latent_noise


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


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("shape", [(), (3,), (4, 5, 6), (0, 4), 40])
def test_noise_is_float32_of_the_shape_asked_for(kind, shape):
    values = generator(kind, 1).normal(shape)
    assert values.dtype == np.float32 and values.shape == np.empty(shape).shape


@pytest.mark.parametrize("kind", ["torch", "numpy"])
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
    noise = latent_noise([TorchGenerator(8), TorchGenerator(9)], height=6, width=5)
    assert noise.flags.c_contiguous and noise.dtype == np.float32
    assert_near(noise, expected)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_an_image_of_a_batch_depends_on_its_own_seed_alone(kind):
    batch = latent_noise([generator(kind, seed) for seed in (1, 2, 3)], 8, 8)
    alone = latent_noise([generator(kind, 2)], 8, 8)
    assert np.array_equal(batch[1:2], alone) and not np.array_equal(batch[:1], alone)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize("seed", [2**64, -2**63 - 1, 1.5, "7", None])
def test_a_seed_out_of_range_or_not_whole_is_the_users_error(kind, seed):
    with pytest.raises(UserError, match="seed"):
        generator(kind, seed)


def test_an_unknown_kind_is_named_with_the_choices():
    with pytest.raises(UserError, match="'dice'.*torch, numpy"):
        generator("dice", 1)


def test_numpys_seeded_words_are_the_mersenne_twisters():
    """The C++ standard fixes the 10,000th word for seed 5489."""
    assert np.random.RandomState(5489).randint(2**32, size=10_000, dtype=np.uint32)[-1] == 4123659995
