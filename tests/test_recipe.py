"""The recipe of the embedded model: its data, its vocabulary, its training tools, and above all its judge.

Whoever judges must be judged first: real scenes have to pass, scenes that show something else have to fail. That is
tested with a few stand-in sprites, so that it needs no font, and with the font's own where it is installed.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from npdiffusion.weights.recipe import judge, scenes, settings, subjects

STAND_INS = ("cat", "dog", "fox", "bear", "panda", "frog")


@pytest.fixture(scope="module")
def sprites():
    """Six shapes, pairwise different in outline or colour, named like subjects."""
    shapes = {}
    for i, name in enumerate(STAND_INS):
        shapes[name] = Image.new("RGBA", (100, 100) if i % 2 else (110, 70))
        pen, (w, h) = ImageDraw.Draw(shapes[name]), shapes[name].size
        colour = ((200, 30, 90), (20, 200, 200), (250, 120, 0), (120, 220, 20), (90, 60, 230), (230, 220, 190))[i]
        if i < 2:
            pen.ellipse((0, 0, w - 1, h - 1), fill=colour)
        elif i < 4:
            pen.polygon([(0, h - 1), (w // 2, 0), (w - 1, h - 1)], fill=colour)
        else:
            pen.rectangle((0, 0, w - 1, h - 1), fill=colour)
            pen.rectangle((w // 4, h // 4, w // 2, h // 2), fill=(30, 30, 30))
    return shapes


def drawn(questions, sprites):
    rng = np.random.default_rng(5)
    return [scenes.draw(question, sprites, rng) for question in questions]


# The judge -----------------------------------------------------------------------------------------------------

def test_judge_passes_real_scenes_of_every_size_and_place(sprites):
    extras = [("", ""), ("small", "on the left"), ("big", ""), ("", "at the top")]
    questions = [
        scenes.Scene((name,), colour, *extra)
        for name in STAND_INS for extra in extras for colour in ("blue", "white", "black")
    ]
    assert judge.marks(questions, drawn(questions, sprites), sprites).all()


def test_judge_fails_scenes_that_show_another_subject_on_another_ground(sprites):
    shown = [scenes.Scene((name,), colour) for name in STAND_INS for colour in ("red", "green")]
    asked = [scenes.Scene((name,), colour) for name in STAND_INS[1:] + STAND_INS[:1] for colour in ("gray", "yellow")]
    assert not judge.marks(asked, drawn(shown, sprites), sprites).any()


def test_judge_sees_no_subject_in_an_empty_picture(sprites):
    picture = np.full((settings.PIXELS, settings.PIXELS, 3), settings.PALETTE["pink"], np.uint8)
    assert judge.look(picture, sprites) == (None, "pink")


def test_judge_looks_at_form_and_not_at_place_or_size(sprites):
    small, big = (drawn([scenes.Scene(("fox",), "gray", size)], sprites)[0] for size in ("small", "big"))
    assert judge.look(small, sprites) == judge.look(big, sprites) == ("fox", "gray")


def test_psnr_of_a_known_error_is_exact():
    a = np.zeros((2, 8, 8, 3), np.uint8)
    assert judge.psnr(a, a + 51) == pytest.approx(20 * np.log10(5))              # 255 / 51 = 5


def test_exam_asks_for_held_out_pairs_only_and_for_each_before_repeating():
    questions = judge.exam(10 ** 6)
    pairs = [(q.subjects[0], q.background) for q in questions]
    assert all(scenes.held_out(*pair) for pair in pairs)
    assert len(questions) == 2 * len(set(pairs)) >= 240
    assert set(pairs[:len(pairs) // 2]) == set(pairs)


def test_judge_passes_the_fonts_own_scenes():
    if not Path(settings.FONT).exists():
        pytest.skip("needs the font of Debian's fonts-noto-color-emoji; the judge's logic is tested without it above")
    sprites = scenes.load_sprites()
    questions = judge.exam(10 ** 6)[::12]
    pictures = drawn(questions, sprites)
    assert judge.marks(questions, pictures, sprites).all()
    shifted = questions[3:] + questions[:3]
    assert judge.marks(shifted, pictures, sprites)[:, 0].mean() < 0.1


# The data ------------------------------------------------------------------------------------------------------

def test_training_scenes_never_show_a_held_out_pair():
    rng = np.random.default_rng(0)
    for _ in range(3000):
        scene = scenes.sample_scene(rng)
        assert not any(scenes.held_out(name, scene.background) for name in scene.subjects)


def test_a_tenth_of_all_pairs_is_held_out():
    share = np.mean([scenes.held_out(name, colour) for name in subjects.NAMES for colour in scenes.COLOURS])
    assert 0.08 < share < 0.13


def test_every_subject_and_background_is_sampled():
    rng = np.random.default_rng(1)
    seen = [scenes.sample_scene(rng) for _ in range(6000)]
    assert {name for scene in seen for name in scene.subjects} == set(subjects.NAMES)
    assert {scene.background for scene in seen} == set(scenes.COLOURS)


def test_there_are_at_least_100_subjects_with_unicode_names():
    assert len(subjects.NAMES) == len(set(subjects.EMOJI.values())) >= 100
    assert subjects.name_in_unicode("cat") == "cat face"


@pytest.mark.parametrize("scene, text", [
    (scenes.Scene(("red apple",), "blue"), "a red apple on a blue background"),
    (scenes.Scene(("octopus",), "orange"), "an octopus on an orange background"),
    (scenes.Scene(("unicorn",), "gray", "", "on the left"), "a unicorn on the left on a gray background"),
    (scenes.Scene(("grapes",), "white", "small"), "small grapes on a white background"),
    (scenes.Scene(("cat", "rocket"), "white"), "a cat and a rocket on a white background"),
])
def test_plain_caption(scene, text):
    assert scenes.caption(scene) == text


def test_every_wording_names_subjects_size_place_and_background():
    rng = np.random.default_rng(2)
    scene = scenes.Scene(("owl",), "brown", "small", "at the top")
    wordings = {scenes.caption(scene, rng) for _ in range(200)}
    assert len(wordings) == 5
    assert all(word in wording for wording in wordings for word in ("small owl", "at the top", "brown"))


def test_same_generator_state_draws_the_same_scene(sprites):
    scene = scenes.Scene(("cat",), "red", "big")
    first, second = (scenes.draw(scene, sprites, np.random.default_rng(3)) for _ in range(2))
    assert first.shape == (settings.PIXELS, settings.PIXELS, 3) and first.dtype == np.uint8
    assert np.array_equal(first, second)


def test_place_words_move_the_subject(sprites):
    def centre(place):
        picture = scenes.draw(scenes.Scene(("bear",), "black", "small", place), sprites, np.random.default_rng(4))
        return np.argwhere((np.abs(picture - judge.ground_of(picture)) > judge.DIFFERS).any(axis=2)).mean(axis=0)
    middle = centre("")
    assert centre("on the left")[1] < middle[1] - 15 < middle[1] + 15 < centre("on the right")[1]
    assert centre("at the top")[0] < middle[0] - 15 < middle[0] + 15 < centre("at the bottom")[0]


# What is shipped agrees with the settings ----------------------------------------------------------------------

def shipped(path):
    return json.loads((settings.WEIGHTS / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path, expected", [
    ("unet/config.json", settings.UNET), ("vae/config.json", settings.VAE), ("text_encoder/config.json", settings.TEXT),
    ("scheduler/scheduler_config.json", settings.SCHEDULER),
])
def test_shipped_configuration_is_the_recipes(path, expected):
    config = shipped(path)
    assert {key: config[key] for key in expected} == json.loads(json.dumps(expected))


def test_vocabulary_has_all_bytes_then_one_entry_per_merge_then_the_special_words():
    vocabulary = shipped("tokenizer/vocab.json")
    merges = (settings.WEIGHTS / "tokenizer/merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    entries = sorted(vocabulary, key=vocabulary.get)
    assert [vocabulary[entry] for entry in entries] == list(range(settings.VOCABULARY_SIZE))
    assert entries[256:512] == [entry + "</w>" for entry in entries[:256]]
    assert entries[512:-2] == [merge.replace(" ", "") for merge in merges]
    assert entries[-2:] == ["<|startoftext|>", "<|endoftext|>"]


def test_words_of_subjects_and_colours_are_single_tokens():
    vocabulary = shipped("tokenizer/vocab.json")
    words = {word for name in (*subjects.NAMES, *scenes.COLOURS, "background") for word in name.split()}
    assert {word for word in words if word + "</w>" not in vocabulary} == set()


# Training tools (need torch) -----------------------------------------------------------------------------------

def test_orthogonalised_keeps_directions_and_evens_out_singular_values():
    torch = pytest.importorskip("torch")
    from npdiffusion.weights.recipe.muon import orthogonalised
    torch.manual_seed(0)
    m = torch.randn(24, 60) * torch.logspace(-1, 1, 24)[:, None]
    values = torch.linalg.svdvals(orthogonalised(m))
    assert torch.linalg.svdvals(m).max() / torch.linalg.svdvals(m).min() > 50
    assert 0.5 < values.min() and values.max() < 1.4
    u, _, vh = torch.linalg.svd(m, full_matrices=False)
    assert torch.trace(u.T @ orthogonalised(m) @ vh.T) > 0.8 * 24                # close to U Vᵀ


def test_rate_warms_up_then_falls_to_zero_when_the_time_is_over():
    pytest.importorskip("torch")
    from npdiffusion.weights.recipe.training import rate_at
    assert rate_at(0.0, 9, 100) == pytest.approx(0.1)
    assert rate_at(0.5, 1000, 100) == pytest.approx(0.5)
    assert rate_at(1.0, 2000, 100) == rate_at(1.3, 2000, 100) == pytest.approx(0.0)


def test_averaged_weights_swap_in_and_out():
    torch = pytest.importorskip("torch")
    from npdiffusion.weights.recipe.training import Averaged
    model = torch.nn.Linear(2, 2, bias=False)
    averaged = Averaged(model, decay=0.5)
    start = model.weight.detach().clone()
    model.weight.data += 1
    averaged.update(model, step=10 ** 6)
    averaged.swap(model)
    assert torch.allclose(model.weight, start + 0.5)
    averaged.swap(model)
    assert torch.allclose(model.weight, start + 1)


def test_state_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    from npdiffusion.weights.recipe import training
    path = tmp_path / "runs" / "state.pt"
    training.save_atomically({"step": 1}, path)
    monkeypatch.setattr(torch, "save", lambda state, file: Path(file).write_bytes(b"half a sta") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training.save_atomically({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
