"""The table of settings: what is made from its rows, and that a setting means the same whichever way it comes."""
import ast
import inspect
import json
import pathlib
import shlex
import sys
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

import npdiffusion
from npdiffusion import command
from npdiffusion.command import cli, like, options
from npdiffusion.command.parser import ELSEWHERE
from npdiffusion.errors import UserError
from npdiffusion.jobs import prompts_file
from npdiffusion.jobs.entries import one_by_one
from npdiffusion.pictures import settings_text
from npdiffusion.pictures.images import save_png
from npdiffusion.pictures.text_inside import png_info
from npdiffusion.settings import IN_PYTHON, ON_COMMAND_LINE, SETTINGS, Request, SettingError, check_typed, table
from npdiffusion.settings.kinds import Switch, Unfit
from npdiffusion.settings.run import OPTIONS
from npdiffusion.settings.table import OTHER_SAMPLERS

# A value of each setting, as text and in Python. Those that need others have them in WITH.
VALUES = {
    "negative_prompt": ("blurry", "blurry"), "init_image": ("in.png", "in.png"), "mask_image": ("mask.png", "mask.png"),
    "apply_overlay": ("true", False), "width": ("64", 64), "height": ("72", 72), "count": ("2", 2), "steps": ("3", 3),
    "sampler": ("dpm++2m", "dpm++2m"), "schedule": ("align-your-steps", "align_your_steps"), "guidance_scale": ("3.5", 3.5),
    "seed": ("7", 7), "strength": ("0.5", 0.5), "invert_mask": ("true", True), "mask_blur": ("2.5", 2.5),
    "padding_mask_crop": ("0", 0), "outpaint": ("left=64", "left=64"), "hires": ("1.5", 1.5), "hires_steps": ("4", 4),
    "hires_strength": ("0.6", 0.6), "hires_upscaler": ("lanczos", "lanczos"), "rng": ("a1111", "a1111"),
    "clip_skip": ("2", 1), "prompt_syntax": ("plain", "plain"), "subseed": ("4", 4), "subseed_strength": ("0.25", 0.25),
    "eta": ("0.5", 0.5), "guidance_rescale": ("0.7", 0.7), "timestep_spacing": ("trailing", "trailing"),
    "prediction_type": ("v_prediction", "v_prediction"), "rescale_betas_zero_snr": ("true", True),
    "control_image": ("in.png", ("in.png",)), "control_scale": ("0.5", (0.5,)),
    "control_from": ("canny:50-150", ("canny:50-150",)), "control_start": ("0.1", (0.1,)),
    "control_end": ("0.9", (0.9,)), "guess_mode": ("true", True),
    "ip_image": ("in.png", ("in.png",)), "ip_scale": ("0.5", (0.5,)),
    "t2i_image": ("in.png", "in.png"), "t2i_scale": ("0.5", 0.5),
    "t2i_end": ("0.5", 0.5), "timesteps": ("999,499", (999, 499)),
    "prompt_2": ("dog", "dog"), "negative_prompt_2": ("red", "red"), "original_size": ("96x40", (40, 96)),
    "crops_coords_top_left": ("8:0", (8, 0)), "target_size": ("64x72", (72, 64)),
    "refiner_at": ("0.5", 0.5), "aesthetic_score": ("7", 7.0), "negative_aesthetic_score": ("3", 3.0)}
WITH = {**{name: ["control_image"] for name in ("control_scale", "control_start", "control_end", "control_from", "guess_mode")},
        "ip_scale": ["ip_image"], "t2i_scale": ["t2i_image"], "t2i_end": ["t2i_image"],
        "mask_image": ["init_image"], "strength": ["init_image"], "invert_mask": ["init_image", "mask_image"],
        "mask_blur": ["init_image", "mask_image"], "padding_mask_crop": ["init_image", "mask_image"],
        "outpaint": ["init_image"], "hires_steps": ["hires"], "hires_strength": ["hires"], "hires_upscaler": ["hires"],
        "subseed": ["subseed_strength"], "subseed_strength": ["subseed"], "eta": ["sampler"]}


def together(name):
    """The setting and those that it needs."""
    return [name, *WITH.get(name, [])] if name != "eta" else ["eta"]


def in_python(name):
    return {each: VALUES[each][1] for each in together(name)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("in.png")
    Image.new("L", (64, 64), 255).save("mask.png")
    return tmp_path


def test_every_setting_has_an_example_here():
    assert {*VALUES} | {"prompt", "vae_tiling"} == {*SETTINGS} == {field.name for field in fields(Request)}


@pytest.mark.parametrize("name", VALUES)
def test_a_setting_means_the_same_by_command_in_a_text_file_and_in_python(name, folder):
    def written(each):
        row, text = SETTINGS[each], VALUES[each][0]
        return [row.option] if isinstance(row.kind, Switch) else [row.option, text]
    argv = ["a cat", *(word for each in together(name) for word in written(each))]
    by_command, = {entry.request.changed(seed=None, subseed=None) for entry in options.parse_options(argv).entries}
    expected = Request("a cat", **in_python(name)).changed(count=1, seed=None, subseed=None)
    assert by_command == expected
    in_file = [f"--{each.replace('_', '-')} {shlex.quote(VALUES[each][0])}" for each in together(name)
               if each != "apply_overlay"]
    (folder / "p.txt").write_text(f"a cat {' '.join(in_file)}\n")
    (_, row), = prompts_file.read_prompts("p.txt")
    if name != "apply_overlay":
        assert Request(**row) == Request("a cat", **in_python(name))


@pytest.mark.parametrize("name", [name for name in VALUES if name != "apply_overlay"])
def test_a_setting_means_the_same_in_a_column(name, folder):
    columns = ["prompt", *together(name)]
    cells = ",".join(f'"{VALUES[each][0]}"' for each in columns[1:])
    (folder / "p.csv").write_text(f"{','.join(columns)}\na cat,{cells}\n")
    (_, row), = prompts_file.read_prompts("p.csv")
    assert Request(**row) == Request("a cat", **in_python(name))


@pytest.mark.parametrize("name", [name for name, row in SETTINGS.items() if row.key])
def test_a_setting_is_read_back_from_the_text_inside_a_picture(name, folder):
    asked = in_python(name) | {"sampler": "ddim"} if name == "eta" else in_python(name)
    text = settings_text.parameters("a cat", width=64, height=64, **{
        key: value for key, value in asked.items() if SETTINGS[key].key and not key.endswith("_image")},
        **{} if "steps" in asked else {"steps": 5}, **{} if "seed" in asked else {"seed": 1})
    save_png(Image.new("RGB", (8, 8)), "like.png", png_info(text))
    given = {key: asked[key] for key in asked if key.endswith("_image")}
    assert like.settings_like("like.png", given).found[name] == asked[name]


def test_a_request_is_the_same_after_json():
    for name in VALUES:
        asked = Request("a “cat”\n", **in_python(name))
        assert Request.from_json(asked.to_json()) == asked
    off = Request("a", rescale_betas_zero_snr=False, seed=2**64 - 1, guidance_scale=0.1 + 0.2)
    assert Request.from_json(off.to_json()) == off and Request.from_json(off.to_json()).rescale_betas_zero_snr is False


def test_a_picture_in_memory_goes_through_json_bit_for_bit():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    again = Request.from_json(Request("a", init_image=picture).to_json()).init_image
    assert again.mode == "RGB" and np.array_equal(np.asarray(again), np.asarray(picture))


@pytest.mark.parametrize(("text", "message"), [
    ("{", "a request in JSON was expected"), ("[]", "is an object in JSON, not a list"),
    ('{"stepz": 1}', "'stepz' is no setting of a picture, did you mean steps?"),
    ('{"prompt": "a", "steps": 0}', "steps is 0"), ('{"prompt": 1}', "prompt is 1: it must be a text"),
    ('{"prompt": "a", "init_image": {"png": "?"}}', "a picture in JSON is"),
    ('{"prompt": "a", "init_image": {"png": "AAAA"}}', "damaged, or not a picture"), ("[" * 100_000, "in JSON was expected")])
def test_json_that_is_no_request_is_one_line(text, message):
    with pytest.raises(UserError) as caught:
        Request.from_json(text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_setting_added_is_a_row_and_the_place_that_uses_it(monkeypatch, folder):
    """Options, help, checks, files of prompts, CSV, JSON and the picture's text all follow from one line of the table."""
    source = pathlib.Path(table.__file__).read_text(encoding="utf-8")
    row = ('    sharpness: float | None = setting(Number(0, 2), "how sharp (default: 1)", group=SAMPLING, metavar="X", '
           'key="Sharpness")\n')
    anchor = "    vae_tiling: str = setting("
    assert source.count(anchor) == 1
    changed = dict(vars(table))
    exec(compile(source.replace(anchor, row + anchor), table.__file__, "exec"), changed)
    for name, module in list(sys.modules.items()):
        if name.startswith("npdiffusion") and module is not table:
            for each in ("SETTINGS", "Request", "SettingError", "check_typed", "ON_COMMAND_LINE"):
                if getattr(module, each, None) is vars(table)[each]:
                    monkeypatch.setattr(module, each, changed[each])
    assert "--sharpness X" in options.build_parser().format_help()
    entry, = options.parse_options(["a cat", "--sharpness", "1.5"]).entries
    assert entry.request.sharpness == 1.5 and entry.asked["sharpness"] == 1.5
    (folder / "p.csv").write_text("prompt,sharpness\na cat,0.5\n")
    assert prompts_file.read_prompts("p.csv") == [("p.csv, line 2", {"prompt": "a cat", "sharpness": 0.5})]
    with pytest.raises(SystemExit):
        options.parse_options(["a cat", "--sharpness", "3"])
    with pytest.raises(UserError, match="sharpness is 3: it must be a number from 0 to 2"):
        changed["Request"]("a cat", sharpness=3)
    assert json.loads(changed["Request"]("a cat", sharpness=1.5).to_json())["sharpness"] == 1.5


def test_what_does_not_go_together_is_said_with_the_names_of_where_it_was_given():
    with pytest.raises(SettingError) as caught:
        Request("a", hires=2, init_image="in.png")
    assert str(caught.value) == ("hires: it is for pictures made from words alone; with init_image, choose a larger width "
                                 "and height")
    assert caught.value.reason(ON_COMMAND_LINE).endswith("with --init-image, choose a larger --width and --height")


def test_a_setting_without_what_it_needs_is_an_error_where_it_was_typed_and_none_in_a_program():
    asked = Request("a", strength=0.5, mask_blur=3)
    with pytest.raises(SettingError) as caught:
        check_typed(asked, {"strength"})
    assert caught.value.reason(IN_PYTHON) == "it says how far a picture may be left, so init_image is needed too"


def test_the_same_is_asked_of_a_picture_of_an_older_manifest():
    """What a manifest of version 0.1.0 says of these options, by which a run goes on."""
    command = options.parse_options(["a cat", "-n", "red", "--steps", "5", "--cfg-scale", "3", "-s", "4", "-W", "64",
                             "--zero-terminal-snr", "--clip-skip", "2", "--sampler", "ddim", "--eta", "0", "-m", "m",
                             "--hires", "2", "--hires-strength", "0.7"])
    assert command.entries[0].asked == {
        "prompt": "a cat", "negative_prompt": "red", "steps": 5, "guidance_scale": 3.0, "seed": 4, "width": 64,
        "rescale_betas_zero_snr": True, "clip_skip": 1, "sampler": "ddim", "eta": 0.0, "model": "m", "hires": 2.0,
        "hires_strength": 0.7}


def test_the_pictures_of_a_request_count_their_seeds_on():
    counted = one_by_one(Request("a", count=3, seed=5))
    assert [(entry.request.seed, entry.request.count, entry.asked["seed"]) for entry in counted] == [
        (5, 1, 5), (6, 1, 6), (7, 1, 7)]
    varied = one_by_one(Request("a", count=2, seed=5, subseed=8, subseed_strength=0.1))
    assert [(entry.request.seed, entry.request.subseed) for entry in varied] == [(5, 8), (5, 9)]
    assert "seed" not in one_by_one(Request("a"))[0].asked


def test_zero_terminal_snr_means_trailing_spacing_in_python_too():
    pipeline = npdiffusion.load()
    resolved = pipeline.resolve(Request("a", rescale_betas_zero_snr=True, prediction_type="v_prediction", steps=10,
                                        sampler="ddim"))
    assert [t for t, *_ in resolved.passes[0].plan.steps] == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert resolved.settings()["timestep_spacing"] == "trailing"


def test_notes_say_which_settings_have_no_effect():
    resolved = npdiffusion.load().resolve(Request("a", negative_prompt="b", guidance_scale=1, eta=0.3, sampler="euler"))
    assert [*resolved.notes(IN_PYTHON)] == [
        "eta has no effect with euler", "negative_prompt has no effect with guidance_scale 1"]
    assert [*resolved.notes(ON_COMMAND_LINE, {"eta"})] == ["--eta has no effect with euler"]


def test_from_generate_to_the_unet_there_are_at_most_eight_frames_and_no_file_is_entered_twice():
    pipeline, ways = npdiffusion.load(), []
    unet = pipeline.unet

    class Watched:
        config = unet.config

        def __call__(self, *arguments):
            ours = [frame.filename for frame in inspect.stack()
                    if "npdiffusion" in frame.filename or "kernels" in frame.filename]
            ways.append(ours[::-1])
            return unet(*arguments)

    pipeline.unet = Watched()
    picture = Image.new("RGB", (64, 64), "red")
    for painting in {}, {"init_image": picture, "mask_image": picture.convert("L")}, {"hires": 1.5}:
        pipeline.generate("a", "b", steps=2, seed=1, width=64, height=64, **painting)
    for way in ways:
        files = [name for name, before in zip(way, [None, *way]) if name != before]
        assert len(way) + 1 <= 8 and len(files) == len(set(files))           # + 1: the UNet's own


def test_every_default_and_rule_stands_in_the_table_alone():
    """No other file of jobs, or of the command that makes pictures, names a range of a setting; subcommands have options of
    their own."""
    root = pathlib.Path(table.__file__).parent.parent
    for path in [*(root / "command").glob("*.py"), *(root / "jobs").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.stem not in command.SUBCOMMANDS else ():
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Whole", "Number", "Side", "Seed", "ClipSkip"):
                raise AssertionError(f"{path.name}, line {node.lineno}: a range outside of the table")


def test_the_command_lists_the_settings_in_groups(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for row in SETTINGS.values():
        assert all(flag in text for flag in row.written if flag.startswith("-") and row.name != "prompt")


def test_text_that_is_no_value_is_said_without_the_name():
    for name, text, message in (("steps", "0", "0 is out of range, allowed are 1 to 1000"), ("eta", "x", "'x' is no number"),
                                ("width", "65", "65 is no multiple of 8, the nearest are 64 and 72"),
                                ("sampler", "eulr", "'eulr' is unknown, did you mean euler?"), ("seed", "-2", "out of range")):
        with pytest.raises(Unfit, match=".*") as caught:
            SETTINGS[name].kind.read(text)
        assert message in str(caught.value)


# ---- names that people type from other programs

@pytest.mark.parametrize(("typed", "name", "value"), [
    ("--sampling-method plms", "sampler", "pndm"), ("--sampler dpmpp_2m", "sampler", "dpm++2m"),
    ("--sampler Euler_A", "sampler", "euler_a"), ("--sampler euler_ancestral", "sampler", "euler_a"),
    ("--scheduler karras", "schedule", "karras"), ("--schedule AYS", "schedule", "align_your_steps"),
    ("--schedule simple", "schedule", "sgm_uniform"), ("--schedule normal", "schedule", "discrete"),
    ("--cfg 3", "guidance_scale", 3.0), ("--num-inference-steps 7", "steps", 7), ("--num_inference_steps 7", "steps", 7),
    ("--negative_prompt red", "negative_prompt", "red"), ("--Steps 7", "steps", 7), ("--rng cuda", "rng", "a1111"),
    ("--rng cpu", "rng", "torch"), ("--clip-skip -1", "clip_skip", None), ("--init-img in.png", "init_image", "in.png"),
    ("--sampler EulerAncestralDiscreteScheduler", "sampler", "euler_a"),
    ("--ddim_steps 7", "steps", 7), ("--sampler-name unipc", "sampler", "unipc"), ("--scale 3", "guidance_scale", 3.0)])
def test_names_of_other_programs_are_taken_silently(typed, name, value, folder, capsys):
    entry, = options.parse_options(["a cat", *typed.split()]).entries
    assert getattr(entry.request, name) == value and capsys.readouterr().err == ""


@pytest.mark.parametrize(("text", "expected"), [
    ("DPM++ 2M Karras", ("dpm++2m", "karras")), ("DPM++ SDE", ("dpm++sde", None)), ("Euler a", ("euler_a", None)),
    ("dpm++2m_sde exponential", ("dpm++2m_sde", "exponential")), ("LMS Karras", ("lms", "karras"))])
def test_a_sampler_written_with_its_schedule_names_both(text, expected):
    entry, = options.parse_options(["a cat", "--sampler", text]).entries
    assert (entry.request.sampler, entry.request.schedule) == expected


def test_a_schedule_that_is_named_goes_before_the_one_written_with_the_sampler():
    schedule, sampler = ["--schedule", "beta"], ["--sampler", "DPM++ 2M Karras"]
    for argv in schedule + sampler, sampler + schedule:
        assert options.parse_options(["a cat", *argv]).entries[0].request.schedule == "beta"


def test_the_prompt_may_be_an_option_but_not_twice(capsys):
    assert options.parse_options(["-p", "a cat"]).entries[0].request.prompt == "a cat"
    assert options.parse_options(["--prompt", "a cat"]).entries[0].request.prompt == "a cat"
    with pytest.raises(SystemExit):
        options.parse_options(["a dog", "-p", "a cat"])
    assert "only one prompt is taken" in capsys.readouterr().err


def test_as_many_threads_as_there_are_cores_is_minus_one():
    assert options.parse_options(["a", "--threads", "-1"]).threads is None


@pytest.mark.parametrize("row", [row for row in (SETTINGS | OPTIONS).values() if row.synonyms], ids=lambda row: row.name)
def test_every_synonym_of_an_option_is_that_option_whatever_its_case_and_hyphens(row):
    parser = options.build_parser()
    for synonym in row.synonyms:
        dest = parser._option_string_actions[synonym].dest
        assert dest == ("prompt_option" if row.name == "prompt" else row.name)
        if synonym.startswith("--"):
            for typed in synonym.upper(), "--" + synonym[2:].replace("-", "_"):
                assert parser.hyphenated(f"{typed}=1") == f"{synonym}=1"


@pytest.mark.parametrize("theirs", OTHER_SAMPLERS)
def test_every_name_of_a_sampler_elsewhere_is_ours(theirs):
    for typed in theirs, theirs.upper(), theirs.replace("_", "-"):
        entry, = options.parse_options(["a cat", "--sampler", typed]).entries
        assert entry.request.sampler == OTHER_SAMPLERS[theirs]


@pytest.mark.parametrize("flag", ELSEWHERE)
def test_every_option_that_has_no_place_here_is_answered(flag, capsys):
    assert flag not in options.build_parser()._option_string_actions, "it is one now: take its row out of ELSEWHERE"
    for typed in flag, flag[:2] + flag[2:].replace("-", "_"):
        with pytest.raises(SystemExit) as end:
            options.parse_options(["a cat", typed])
        said = capsys.readouterr().err
        assert end.value.code == 2 and said == f"npdiffusion: error: {typed}: {ELSEWHERE[flag]}\n"


@pytest.mark.parametrize(("typed", "hint"), [
    ("--stps", "did you mean --steps?"), ("--W", "did you mean -W?"), ("--H", "did you mean -H?"), ("--n", "did you mean -n?"),
    ("--promt", "did you mean --prompt?"), ("--negativ", "did you mean --negative-prompt?"),
    ("--neg-prompt", "did you mean --negative-prompt?"), ("--output-path", "did you mean --output?"),
    ("--iters", "(all options: --help)"), ("--w", "(all options: --help)"), ("--canny", "(all options: --help)")])
def test_a_hint_names_an_option_that_is_shown_and_never_the_one_that_was_typed(typed, hint, capsys):
    with pytest.raises(SystemExit):
        options.parse_options(["a cat", typed, "5"])
    comma = "," if "mean" in hint else ""
    assert capsys.readouterr().err == f"npdiffusion: error: unknown option {typed}{comma} {hint}\n"


def test_an_option_behind_two_hyphens_is_told_where_it_belongs(capsys):
    with pytest.raises(SystemExit):
        options.parse_options(["--", "-cat", "--steps", "2"])
    assert capsys.readouterr().err == ("npdiffusion: error: --steps: options stand before the --, behind it is the prompt "
                                       "alone\n")
    entry, = options.parse_options(["--steps", "2", "--", "-cat"]).entries
    assert (entry.request.prompt, entry.request.steps) == ("-cat", 2)


@pytest.mark.parametrize(("typed", "answer"), [
    ("--device cuda", "--device: everything runs on the CPU here"), ("--vae-on-cpu", "everything runs on the CPU here"),
    ("--type q8_0", "--dtype bfloat16"), ("--upscale-model x.pth", "--hires 2")])
def test_options_that_are_not_offered_are_answered(typed, answer, capsys):
    with pytest.raises(SystemExit) as end:
        options.parse_options(["a cat", *typed.split()])
    assert end.value.code == 2 and answer in capsys.readouterr().err


@pytest.mark.parametrize(("line", "expected"), [
    ('a cat -n "red" -s 5', {"prompt": "a cat", "negative_prompt": "red", "seed": 5}),
    ("a cat -s5 -W 64", {"prompt": "a cat", "seed": 5, "width": 64}),
    ("a cat -i in.png --mask mask.png --invert-mask --steps 3",
     {"prompt": "a cat", "init_image": "in.png", "mask_image": "mask.png", "invert_mask": True, "steps": 3}),
    ("a cat --invert-mask false --steps 3", {"prompt": "a cat", "invert_mask": False, "steps": 3}),
    ('a cat --sampler "DPM++ 2M Karras"', {"prompt": "a cat", "sampler": "dpm++2m", "schedule": "karras"}),
    ("a well-known -sharp cat - nice", {"prompt": "a well-known -sharp cat - nice"})])
def test_files_of_prompts_take_every_spelling_of_an_option(line, expected, folder):
    (folder / "p.txt").write_text(line + "\n")
    assert prompts_file.read_prompts("p.txt") == [("p.txt, line 1", expected)]
