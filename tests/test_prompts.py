"""Prompts: what the notation means, by AUTOMATIC1111's documented examples, and what the UNet attends to, by torch."""
import warnings

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image

from npdiffusion import kernels
from npdiffusion.errors import UserError
from npdiffusion.text import chunks, editing, emphasis, reading
from npdiffusion.text.contexts import Context, Contexts
from npdiffusion.text.editing import PromptNote
from npdiffusion.text.emphasis import BREAK
from npdiffusion.text.reading import read_prompt
from npdiffusion.text.tokenizer import CLIPTokenizer, TextCutOff
from tests import references
from tests.differences import agree
from tests.pairs import VOCABULARY, make_pair
from tests.references import SCHEDULER


@pytest.fixture(scope="module")
def pair():
    """(diffusers' pipeline, ours), both tiny, random and equal; four layers in the text encoder."""
    theirs, ours = make_pair(sampler="euler", text=dict(num_hidden_layers=4))
    if not hasattr(theirs.text_encoder, "text_model"):      # where diffusers' clip_skip looks for the last norm
        theirs.text_encoder.__dict__["text_model"] = theirs.text_encoder
    return theirs, ours


# ---- the notation; inputs and results as AUTOMATIC1111 documents them beside its parser

UNCLOSED = pytest.mark.filterwarnings("ignore:.*isn't closed:npdiffusion.text.editing.PromptNote")


@UNCLOSED
@pytest.mark.parametrize(("prompt", "parts"), [
    ("normal text", [("normal text", 1)]),
    ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
     [("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1), ("sky", 1.4641),
      (".", 1.1)]),
    ("((a:1.2):1.5) [b]", [("a", 1.8), (" ", 1), ("b", 1 / 1.1)]),
    ("(a: -1 ) ] :-)", [("a", -1), (" ] :-)", 1)]),
    ("", []),
    ("a BREAK b", [("a", 1), BREAK, ("b", 1)]),
    ("BREAKfast", [("BREAKfast", 1)]),
])
def test_emphasis_is_read_as_documented(prompt, parts):
    found = emphasis.weighted(prompt)
    assert [text for text, _ in found] == [text for text, _ in parts]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in parts], rel=1e-12)


@pytest.mark.parametrize(("prompt", "entries"), [
    ("test", [(10, "test")]),
    ("a [b:3]", [(3, "a "), (10, "a b")]),
    ("a [b: 3]", [(3, "a "), (10, "a b")]),
    ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
    ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
    ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
    ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("a [unbalanced", [(10, "a [unbalanced")]),
    ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
    ("a [b::.5] c", [(5, "a b c"), (10, "a  c")]),
    ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
    ("[a|(b:1.1)]", [(step, ["a", "(b:1.1)"][(step - 1) % 2]) for step in range(1, 11)]),
    ("[fe|]male", [(step, ["female", "male"][(step - 1) % 2]) for step in range(1, 11)]),
    ("[fe|||]male", [(step, ["female", "male", "male", "male"][(step - 1) % 4]) for step in range(1, 11)]),
    (r"\[a:b:3]", [(10, r"\[a:b:3]")]),
    ("[a:b:99]", [(10, "a")]),
    ("[a:b:0]", [(10, "b")]), ("[a:b:-1e999]", [(10, "b")]), ("[a:b:1e999]", [(10, "a")]),
])
def test_editing_is_read_as_documented(prompt, entries):
    assert editing.schedule(prompt, 10) == entries


def test_the_long_documented_example():
    prompt = ("fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6]"
              "[ in background:0.25] [shoddy:masterful:0.5]")
    assert editing.schedule(prompt, 100) == [
        (25, "fantasy landscape with a mountain and an oak in foreground shoddy"),
        (50, "fantasy landscape with a lake and an oak in foreground in background shoddy"),
        (60, "fantasy landscape with a lake and an oak in foreground in background masterful"),
        (75, "fantasy landscape with a lake and an oak in background masterful"),
        (100, "fantasy landscape with a lake and a christmas tree in background masterful")]


@pytest.mark.parametrize(("prompt", "entries"), [
    ("a [b:.5] c", [(10, "a b c")]), ("a [b:1.5] c", [(5, "a  c"), (10, "a b c")])])
def test_a_second_pass_counts_on(prompt, entries):
    assert editing.schedule(prompt, 10, earlier=10) == entries


def test_the_pipeline_counts_calls_of_both_passes(pair):
    contexts = pair[1].contexts([("a [cat:dog:1.5] [red:12]", None)], 10, "heun", earlier=5)
    assert [last for last, _ in contexts.schedules[0]] == [2, 10, 20]          # 12 - 2 · 5, and half of 2 · 10


@pytest.mark.parametrize(("prompt", "note"), [
    ("(cat:big)", "':big' in the prompt is no weight"), ("(cat:1.2.3)", "':1.2.3' in the prompt is no weight"),
    ("a (cat, dog", r"'\(cat, dog' in the prompt isn't closed by \), so its weight reaches to the end"),
    ("a [cat", r"'\[cat' in the prompt isn't closed by \]"), ("(a) ((b)", r"'\(b' in the prompt isn't closed"),
    ("(a BREAK b)", "BREAK inside of brackets is a word"), ("[a:b:3] c|d", "outside of"), ("a AND b", "AND doesn't combine")])
def test_what_is_no_notation_is_text_with_a_note(prompt, note):
    with pytest.warns(PromptNote, match=note):
        reading = read_prompt(prompt, 10, CLIPTokenizer.from_folder(VOCABULARY))
    assert len(reading.entries) == 1


def test_a_weight_that_is_no_number_keeps_its_characters():
    with pytest.warns(PromptNote):
        assert emphasis.weighted("(cat:big) (dog:1.2.3)") == [("cat:big", 1.1), (" ", 1.0), ("dog:1.2.3", 1.1)]


@UNCLOSED
@pytest.mark.parametrize("prompt", ["[" * 4_000, "[a:" * 4_000 + ":2]" * 4_000, "(a:1.1" * 4_000, "[a|" * 2_000])
def test_brackets_without_end_say_no_more_than_the_prompt(prompt):
    for _, text in editing.schedule(prompt, 20):
        assert sum(len(part) for part, _ in emphasis.weighted(text)) <= len(text) <= len(prompt)


def test_what_a_prompt_says_is_put_together_once_for_each_way_that_it_can_be():
    texts = [text for _, text in editing.schedule("[a|b]" * 20_000, 150)]
    assert len(texts) == 150 and len({id(text) for text in texts}) == 2 and texts[1] == "b" * 20_000
    assert editing.schedule("[a|b|c][d:e:5]", 12) == [(i, "abc"[(i - 1) % 3] + "de"[i > 5]) for i in range(1, 13)]


def test_a_prompt_is_refused_by_the_first_of_its_texts_that_is_too_long(monkeypatch):
    made = []
    changes = editing.changes
    monkeypatch.setattr(editing, "changes", lambda *asked: (made.append(each) or each for each in changes(*asked)))
    with pytest.raises(UserError, match="more than the 7500 that are allowed"):
        read_prompt("[a |b ]" * 10_000, 150, CLIPTokenizer.from_folder(VOCABULARY))
    assert len(made) == 1


def test_white_space_is_walked_over_once():                            # for each blank anew takes many minutes
    blanks = " " * 10**6
    assert emphasis.weighted(f"a{blanks}b") == [(f"a{blanks}b", 1.0)]
    assert emphasis.weighted(f"{blanks}a{blanks}BREAK{blanks}b") == [(f"{blanks}a", 1.0), BREAK, ("b", 1.0)]


def test_ordinary_prompts_cause_no_notes():
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        read_prompt("a red apple: big, (round:1.2) [old], 50% :) it's BREAK fine", 10, CLIPTokenizer.from_folder(VOCABULARY))
    assert notes == []


# ---- chunks

@pytest.mark.parametrize(("prompt", "sizes"), [
    ("", [0]), ("cat " * 75, [75]), ("cat " * 76, [75, 1]), ("cat " * 160, [75, 75, 10]),
    ("a BREAK b", [1, 1]), ("BREAK b BREAK", [0, 1]),
    ("cat, " * 35 + "cat " * 12, [70, 12]),                # the last comma is 6 back: what follows it moves on
    ("cat, " * 27 + "cat " * 30, [75, 9]),                 # 22 back: too far
    ("cat, " * 37 + "cat , cat", [75, 2]),                 # a comma that doesn't fit begins the next chunk
])
def test_chunks_end_at_75_tokens_or_a_comma_near(prompt, sizes):
    found = chunks.chunks(emphasis.weighted(prompt), CLIPTokenizer.from_folder(VOCABULARY))
    assert [len(chunk) for chunk in found] == sizes


def test_a_prompt_without_end_is_refused():
    with pytest.raises(UserError, match="9000 tokens, more than the 7500"):
        read_prompt("cat " * 9000, 10, CLIPTokenizer.from_folder(VOCABULARY))


def test_chunks_without_tokens_are_counted_as_well():
    with pytest.raises(UserError, match="the prompt has 101 chunks, more than the 100"):
        read_prompt("a BREAK " * 100 + "a", 10, CLIPTokenizer.from_folder(VOCABULARY))


def test_a_prompt_of_too_many_chunks_over_its_texts_is_refused():
    tokenizer = CLIPTokenizer.from_folder(VOCABULARY)
    turns = "[" + "|".join(f"a{i}" for i in range(20)) + "]"
    with pytest.raises(UserError) as error:
        read_prompt(f"{turns}{' cat' * 60 * 75}", 40, tokenizer)
    expected = ("the prompt is 17 texts that take turns, with 61 chunks of 75 tokens for each: more than 1000 chunks in all; "
                "shorten it")                            # they are counted until there are too many
    assert str(error.value).startswith(expected) and "\n" not in str(error.value)


def test_as_many_chunks_as_are_allowed_are_read(monkeypatch):
    monkeypatch.setattr(reading, "MOST_CHUNKS", 6)
    tokenizer = CLIPTokenizer.from_folder(VOCABULARY)
    assert [len(found) for found in read_prompt("[a|b|c] BREAK d", 10, tokenizer).chunks.values()] == [2, 2, 2]
    with pytest.raises(UserError, match="is 4 texts that take turns, with 2 chunks"):
        read_prompt("[a|b|c|e] BREAK d", 10, tokenizer)


def test_a_negative_prompt_that_makes_another_too_large_is_refused_before_anything_is_encoded(monkeypatch):
    monkeypatch.setattr(reading, "MOST_CHUNKS", 6)
    readings = [read_prompt(prompt, 10, CLIPTokenizer.from_folder(VOCABULARY)) for prompt in ("[a|b|c|e]", "a BREAK b")]
    with pytest.raises(UserError, match="is 4 texts that take turns, with 2 chunks"):
        Contexts([[each] for each in readings], [])


@pytest.mark.parametrize(("length", "count", "most"), [(1, 1, 16), (2, 1, 8), (2, 4, 2), (20, 1, 1)])
def test_fewer_contexts_stay_prepared_the_larger_they_are(length, count, most):
    for different, expected in (most, most), (most + 1, 2 * (most + 1)):       # in turn, twice: all are kept, or none
        contexts = Contexts.__new__(Contexts)
        contexts.length, contexts.count, contexts.timestep_cond, contexts.sizes = length, count, None, None
        contexts._prepared, contexts.pictures = {}, ()
        arrays = [Context(np.zeros((1, 1, 1))) for _ in range(different)]
        contexts.schedules = [[(call, arrays[call % different]) for call in range(2 * different)]]
        made = [contexts.conditioning(call) for call in range(2 * different)]
        assert [len(each) for each in made] == [count] * len(made)
        assert len(set(map(id, made))) == expected


# ---- encoding

@torch.no_grad()
def torch_context(theirs, batch, skip=0):
    """Contexts of several texts of one schedule, each a list of chunks [(text, weight), ...], by the published rules."""
    contexts = []
    for parallel in zip(*batch):
        ids, multipliers = [], []
        for chunk in parallel:
            pieces = [(number, weight) for text, weight in chunk
                      for number in theirs.tokenizer(text, add_special_tokens=False)["input_ids"]]
            filler = [(theirs.tokenizer.eos_token_id, 1.0)] * (76 - len(pieces))
            framed = [(theirs.tokenizer.bos_token_id, 1.0), *pieces, *filler]
            ids.append([number for number, _ in framed])
            multipliers.append([weight for _, weight in framed])
        hidden = theirs.text_encoder(torch.tensor(ids), output_hidden_states=True).hidden_states[-1 - skip]
        z = theirs.text_encoder.text_model.final_layer_norm(hidden)
        weighted = z * torch.tensor(multipliers)[:, :, None]
        contexts.append(weighted * (z.mean() / weighted.mean()))
    return torch.cat(contexts, dim=1)


LONG = ", ".join(["a red apple on a blue background"] * 12)
LONG_CHUNKS = [[(", ".join(["a red apple on a blue background"] * 9) + ",", 1.0)],
               [(" " + ", ".join(["a red apple on a blue background"] * 3), 1.0)]]


@pytest.mark.parametrize(("what", "prompt", "parsed"), [
    ("weights", "a (red:1.4) [apple] on ((blue))",
     [[("a ", 1), ("red", 1.4), (" ", 1), ("apple", 1 / 1.1), (" on ", 1), ("blue", 1.21)]]),
    ("negative weight", "a (red:-0.7) apple", [[("a ", 1), ("red", -0.7), (" apple", 1)]]),
    ("BREAK", "a cat BREAK (a dog:1.2)", [[("a cat", 1)], [("a dog", 1.2)]]),
    ("two chunks", LONG, LONG_CHUNKS),
])
@pytest.mark.parametrize("skip", [0, 2])
def test_contexts_equal_those_of_torch(what, prompt, parsed, skip, pair):
    theirs, ours = pair
    agree("prompts", f"{what}, {skip} layers skipped", ours.encode_prompt(prompt, clip_skip=skip),
          torch_context(theirs, [parsed], skip), 2e-5, relative=True)


@pytest.mark.parametrize("skip", [None, 1, 3])
def test_clip_skip_is_that_of_diffusers(skip, pair):
    theirs, ours = pair
    with torch.no_grad():
        expected, _ = theirs.encode_prompt("a red apple", "cpu", 1, False, clip_skip=skip)
    agree("prompts", f"clip_skip {skip}", ours.encode_prompt("a red apple", clip_skip=skip), expected, 2e-5, relative=True)


def test_without_notation_the_context_is_bit_for_bit_that_of_the_text_encoder(pair):
    ours = pair[1]
    for prompt in "a red apple, on a blue background", "", "cat " * 75, "it's a dog: big?":
        expected = ours.text_encoder(ours.tokenizer.encode(prompt)[None])
        for syntax in "a1111", "plain":
            assert np.array_equal(ours.encode_prompt(prompt, prompt_syntax=syntax), expected)


def test_plain_syntax_takes_a_prompt_as_diffusers_does(pair):
    theirs, ours = pair
    prompt = "a (red:1.3) [apple:cat:0.5] BREAK " + "cat " * 80
    with torch.no_grad(), warnings.catch_warnings(record=True):
        expected, _ = theirs.encode_prompt(prompt, "cpu", 1, False)
    with pytest.warns(TextCutOff, match="75 fit"):
        found = ours.encode_prompt(prompt, prompt_syntax="plain")
    agree("prompts", "plain, cut off", found, expected, 2e-5, relative=True)


def test_both_prompts_are_padded_to_the_same_number_of_chunks(pair):
    theirs, ours = pair
    context, negative = (each.states for each in ours.contexts([(LONG, None), ("a dog", None)], 10).at(0))
    agree("prompts", "padded negative prompt", negative, torch_context(theirs, [[[("a dog", 1)], []]]), 2e-5, relative=True)
    assert context.shape == negative.shape == (1, 154, 24)
    context, negative = (each.states for each in ours.contexts([("a dog", None), (LONG, None)], 10).at(0))
    assert context.shape == negative.shape == (1, 154, 24)


# ---- whole runs, for which diffusers is given contexts call by call

def run(pipeline, contexts, negative, **options):
    """diffusers' last latents where call i of the model attends to contexts[i]"""
    def change(pipeline, call, time_step, tensors):
        context = contexts[min(call + 1, len(contexts) - 1)]
        return {"prompt_embeds": torch.cat([negative, context])}

    return references.channels_last(pipeline(
        prompt_embeds=contexts[0], negative_prompt_embeds=negative, guidance_scale=5.0, output_type="latent",
        generator=torch.Generator().manual_seed(7), callback_on_step_end=change, **options).images)


def our_run(ours, prompt, negative="green", **options):
    """The same of our pipeline"""
    seen = []
    ours.generate(prompt, negative, guidance_scale=5.0, seed=7, width=32, height=32,
                  callback=lambda step, steps, latents: seen.append(latents), **options)
    return seen[-1]


GREEN = [[[("green", 1.0)]]]
CAT, DOG, WEIGHED = [("a cat", 1.0)], [("a dog", 1.0)], [("a ", 1.0), ("dog", 1.4)]


@pytest.mark.parametrize(("prompt", "texts", "order", "sampler", "steps"), [
    ("a [cat:dog:3]", [CAT, DOG], [0] * 4 + [1] * 4, "euler", 8),
    ("a [cat:(dog:1.4):.5]", [CAT, WEIGHED], [0] * 5 + [1] * 3, "euler", 8),
    ("a [cat|dog]", [CAT, DOG, CAT, DOG, CAT, DOG], [0, 0, 1, 0, 1, 0], "euler", 6),      # the first one is repeated
    ("a [cat:dog:0.5]", [CAT, DOG], [0] * 7 + [1] * 4, "heun", 6),                          # 11 calls count as 12
], ids=["steps", "share, weighed", "alternation", "two calls a step"])
def test_a_prompt_that_changes_goes_diffusers_way(prompt, texts, order, sampler, steps, pair):
    theirs, ours = pair
    theirs.scheduler = {"euler": EulerDiscreteScheduler, "heun": HeunDiscreteScheduler}[sampler].from_config(SCHEDULER)
    encoded = torch_context(theirs, [[text] for text in texts]).split(1)
    expected = run(theirs, [encoded[i] for i in order], torch_context(theirs, GREEN), num_inference_steps=steps,
                   height=32, width=32)
    one_later = run(theirs, [encoded[i] for i in [order[0], *order]], torch_context(theirs, GREEN), num_inference_steps=steps,
                    height=32, width=32)
    found = our_run(ours, prompt, sampler=sampler, steps=steps)
    agree("prompts", f"latents of {prompt!r}", found, expected, 4e-5, relative=True)
    assert np.abs(one_later - expected).max() > 1e-3


def test_image_to_image_counts_from_its_own_first_call_in_all_steps(pair):
    theirs, ours = pair
    start = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    pipeline = StableDiffusionImg2ImgPipeline(**theirs.components, requires_safety_checker=False)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(SCHEDULER)
    pipeline.set_progress_bar_config(disable=True)
    encoded = torch_context(theirs, [[CAT], [DOG]]).split(1)
    expected = run(pipeline, [encoded[0]] * 3 + [encoded[1]] * 4, torch_context(theirs, GREEN), image=start, strength=0.7,
                   num_inference_steps=10)
    found = our_run(ours, "a [cat:dog:0.2]", sampler="euler", steps=10, init_image=start, strength=0.7)
    agree("prompts", "image to image, latents", found, expected, 4e-5, relative=True)


def test_long_prompts_go_diffusers_way(pair):
    theirs, ours = pair
    theirs.scheduler = EulerDiscreteScheduler.from_config(SCHEDULER)
    expected = run(theirs, [torch_context(theirs, [LONG_CHUNKS])], torch_context(theirs, [[[("green", 1.0)], []]]),
                   num_inference_steps=6, height=32, width=32)
    agree("prompts", "latents of two chunks", our_run(ours, LONG, sampler="euler", steps=6), expected, 4e-5, relative=True)


def test_keys_and_values_are_computed_once_for_each_context(pair):
    ours, seen = pair[1], []
    cross = ours.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    with kernels.watched(lambda operation, arguments, result: seen.append(id(arguments.get("weight")))):
        ours.generate("a [cat|dog|cat]", "green", steps=8, sampler="ddim", seed=0)
    assert [seen.count(id(layer.weight)) for layer in (cross.to_q, cross.to_k, cross.to_v)] == [8, 2, 2]


@pytest.mark.parametrize(("settings", "words"), [
    (dict(clip_skip=4), "clip_skip is 4: of this text encoder's 4 layers, 0 to 3 can be left out"),
    (dict(clip_skip=-1), "clip_skip is -1"), (dict(clip_skip=1.5), "clip_skip is 1.5"),
    (dict(prompt_syntax="comfy"), "unknown prompt_syntax 'comfy': known are a1111, plain"),
    (dict(prompt="(cat:" + "9" * 45 + ")"), "too large"), (dict(prompt="(cat:1e9)"), None)])
def test_settings_that_cannot_be_used_are_named(settings, words, pair):
    settings = dict(prompt="a cat") | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptNote)
        if words is None:
            assert np.isfinite(pair[1].encode_prompt(**settings)).all()
        else:
            with pytest.raises(UserError) as error:
                pair[1].encode_prompt(**settings)
            assert words in str(error.value) and "\n" not in str(error.value)
