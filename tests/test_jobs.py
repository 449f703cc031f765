"""Many pictures: files of prompts, the manifest and what a kill leaves, grids and comparisons."""
import json
import os
import pathlib
import signal
import sys

import numpy as np
import pytest
from PIL import Image

from npdiffusion.command import cli
from npdiffusion.jobs import manifest, prompts_file
from npdiffusion.jobs.listener import Listener
from npdiffusion.pictures import images, text_inside
from npdiffusion.pictures.sheets import GAP
from tests.fake_pipeline import PROMPT, FakePipeline, files, settings_in


def lines(folder="out"):
    return [json.loads(line) for line in pathlib.Path(folder, manifest.NAME).read_text(encoding="utf-8").splitlines()]


def rows(text, name="jobs.txt"):
    pathlib.Path(name).write_text(text, encoding="utf-8")
    return prompts_file.read_prompts(name)


# ---- files of prompts

def test_each_line_is_a_prompt_with_options(pipeline):
    assert rows('a cat\n\n a "red" dog  --steps 20 --cfg-scale=3 --negative_prompt "blurry, dull" --seed 5\n'
                '--prompt x\n') == [
        ("jobs.txt, line 1", {"prompt": "a cat"}),
        ("jobs.txt, line 3", {"prompt": 'a "red" dog', "steps": 20, "guidance_scale": 3.0, "seed": 5,
                              "negative_prompt": "blurry, dull"}),
        ("jobs.txt, line 4", {"prompt": "x"})]


def test_columns_of_csv_are_options(pipeline):
    assert rows('\ufeffPrompt,negative prompt,CFG-scale,sampler\n"a ""red"" dog, and\na cat",,7,euler\n,,,\nb,c,,\n',
                "jobs.csv") == [
        ("jobs.csv, line 3", {"prompt": 'a "red" dog, and\na cat', "guidance_scale": 7.0, "sampler": "euler"}),
        ("jobs.csv, line 5", {"prompt": "b", "negative_prompt": "c"})]


def test_commas_at_the_end_of_lines_are_no_columns(pipeline):
    assert rows("prompt,seed,,\na,5,,\nb\n", "jobs.csv") == [
        ("jobs.csv, line 2", {"prompt": "a", "seed": 5}), ("jobs.csv, line 3", {"prompt": "b"})]


def test_switches_are_on_or_off(pipeline):
    text = "prompt,invert-mask,no_overlay\na,true,yes\nb,Off,\n"
    assert [row for _, row in rows(text, "jobs.csv")] == [
        {"prompt": "a", "invert_mask": True, "apply_overlay": False}, {"prompt": "b", "invert_mask": False}]


@pytest.mark.parametrize(("name", "text", "message"), [
    ("jobs.csv", "prompt,invert_mask\na,maybe\n", "jobs.csv, line 2: invert_mask: 'maybe' is unknown, known are true"),
    ("jobs.csv", "prompt,sampler\na,help\n", "jobs.csv, line 2: sampler: 'help' is for the command line"),
    ("jobs.txt", f"a\n{'b ' * 60_000}", "jobs.txt, line 2: prompt: the text has 119999 characters, at most 100000 are"),
    ("jobs.txt", "a\nb --stpes 3", "jobs.txt, line 2: unknown option '--stpes', did you mean steps?"),
    ("jobs.txt", "a --steps 0", "jobs.txt, line 1: --steps: 0 is out of range, allowed are 1 to 1000"),
    ("jobs.txt", "a --steps", "jobs.txt, line 1: --steps has no value"),
    ("jobs.txt", "a --negative-prompt red apple", "jobs.txt, line 1: 'apple' is left over: put a value of several"),
    ("jobs.txt", 'a --negative-prompt "red', "jobs.txt, line 1: no closing quotation after the prompt"),
    ("jobs.txt", "a --model x", "jobs.txt, line 1: --model is for all pictures, so it belongs on the command line"),
    ("jobs.txt", "\n", "jobs.txt: there is no prompt in it"),
    ("jobs.txt", "a --strength 0.5", "jobs.txt, line 1: --strength: it says how far a picture may be left"),
    ("jobs.txt", "--steps 5", "jobs.txt, line 1: a prompt is missing"),
    ("jobs.csv", "prompt,sampler\na,b\n", "jobs.csv, line 2: sampler: 'b' is unknown, known are"),
    ("jobs.csv", "prompt,smapler\na,b\n", "jobs.csv, line 1: unknown column 'smapler', did you mean sampler?"),
    ("jobs.csv", "prompt,smapler\na,\n", "jobs.csv, line 1: unknown column 'smapler', did you mean sampler?"),
    ("jobs.csv", "prompt,,seed\na,,\n", "jobs.csv, line 1: unknown column ''"),
    ("jobs.csv", "prompt,model\na,b\n", "jobs.csv, line 1: model is for all pictures, so it belongs on the command line"),
    ("jobs.csv", "cfg_scale,guidance scale\n1,2\n", "jobs.csv, line 1: the column guidance_scale is there twice"),
    ("jobs.csv", "prompt,\na,b\n", "jobs.csv, line 2: 2 cells, but there are 1 columns"),
    ("jobs.csv", "prompt\na,b\n", "jobs.csv, line 2: 2 cells, but there are 1 columns"),
    ("jobs.csv", "seed,Seed\n1,2\n", "jobs.csv, line 1: the column seed is there twice"),
    ("jobs.csv", 'prompt\n"a\n', "jobs.csv, line 2: not CSV"),
    ("jobs.csv", "prompt,batch_count\n" + "a,9999\n" * 11, "jobs.csv: it asks for more than 100000 pictures"),
    ("missing.txt", None, "missing.txt: no such file"),
    ("jobs.txt", b"caf\xe9", "jobs.txt: not valid UTF-8 (unexpected end of data at byte 3)"),
])
def test_what_cannot_be_understood_is_one_line_with_its_place(name, text, message, pipeline, tmp_path, capsys):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert cli.main(["--prompts", name, "-o", "out/"]) in (1, 2)
    printed = capsys.readouterr().err
    assert printed.startswith(f"npdiffusion: error: {message}") and printed.count("\n") == 1
    assert pipeline.loaded == [] and not (tmp_path / "out" / manifest.NAME).exists()


def run(*arguments, code=0):
    assert cli.main(["--prompts", "jobs.txt", "-o", "out/", *arguments]) == code


def test_a_picture_for_each_line_with_a_manifest_beside_them(pipeline, tmp_path):
    (tmp_path / "jobs.txt").write_text("a cat --steps 2 --seed 5\na dog --seed 6 --batch-count 2\n")
    run("--steps", "3", "--sampler", "euler")
    assert files(tmp_path / "out") == ["a-cat-5.png", "a-dog-6.png", "a-dog-7.png", "manifest.jsonl"]
    assert [(asked["prompt"], asked["seed"], asked["steps"]) for asked in pipeline.asked] == [
        ("a cat", 5, 2), ("a dog", 6, 3), ("a dog", 7, 3)]
    found = lines()
    assert [(line["file"], line["seed"], line["prompt"]) for line in found] == [
        ("a-cat-5.png", 5, "a cat"), ("a-dog-6.png", 6, "a dog"), ("a-dog-7.png", 7, "a dog")]
    assert found[0]["settings"]["steps"] == 2 and found[0]["settings"]["sampler"] == "euler"
    assert found[0]["seconds"] >= 0
    assert found[2]["asked"] == {"prompt": "a dog", "steps": 3, "sampler": "euler", "seed": 7}
    assert "Steps: 2" in settings_in("out/a-cat-5.png")


def test_the_same_command_again_makes_nothing_and_loads_nothing(pipeline, tmp_path, capsys):
    (tmp_path / "jobs.txt").write_text("a cat --batch-count 3\na dog\n")      # random seeds
    run()
    before, made = files(tmp_path / "out"), len(pipeline.asked)
    capsys.readouterr()
    run()
    assert files(tmp_path / "out") == before and len(pipeline.asked) == made and len(pipeline.loaded) == 1
    assert capsys.readouterr().err == "jobs.txt: 4 pictures, 4 are there already\n"
    (tmp_path / "jobs.txt").write_text("a pear\n")
    for told in "jobs.txt: 1 picture, 0 are there already", "jobs.txt: 1 picture, 1 is there already":
        run()
        assert capsys.readouterr().err.splitlines()[0] == told


def test_lines_may_be_moved_added_and_changed_between_runs(pipeline, tmp_path):
    (tmp_path / "jobs.txt").write_text("a cat --seed 1\na cat --seed 1\na dog\n")
    run()
    (tmp_path / "jobs.txt").write_text("a dog\na cow\na cat --seed 1\na cat --seed 1 --steps 2\na cat --seed 1\n")
    run()
    assert [asked["prompt"] for asked in pipeline.asked] == ["a cat", "a cat", "a dog", "a cow", "a cat"]
    assert pipeline.asked[-1]["steps"] == 2
    cats = [name for name in files(tmp_path / "out") if "cat" in name]
    assert cats == ["a-cat-1-2.png", "a-cat-1-3.png", "a-cat-1.png"]


def test_a_picture_that_was_removed_is_made_again_with_its_seed_and_without_another_line(pipeline, tmp_path):
    (tmp_path / "jobs.txt").write_text("a cat\na dog\n")
    run()
    first = lines()
    (tmp_path / "out" / first[0]["file"]).unlink()
    run()
    assert pipeline.asked[-1]["seed"] == first[0]["seed"]
    assert lines() == first and files(tmp_path / "out") == sorted([line["file"] for line in first] + [manifest.NAME])


def test_files_that_were_there_before_are_kept(pipeline, tmp_path):
    (tmp_path / "jobs.txt").write_text("a cat --seed 1\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a-cat-1.png").write_text("precious")
    run()
    assert (tmp_path / "out" / "a-cat-1.png").read_text() == "precious"
    assert lines()[0]["file"] == "a-cat-1-2.png"


@pytest.mark.parametrize(("line", "message"), [
    ("{", "Expecting"), ("[]", "list indices"), ('{"file": "a", "seed": 1}', "'asked'"),
    ('{"file": "../a.png", "seed": 1, "asked": {}}', "'../a.png' is not the name of a file in this folder"),
    ('{"file": "a.png", "seed": "1", "asked": {}}', "of another kind"), ("[" * 100_000, "")])
def test_a_damaged_manifest_is_one_line_with_its_place(line, message, pipeline, tmp_path, capsys):
    (tmp_path / "jobs.txt").write_text("a cat --seed 1\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / manifest.NAME).write_text(line + "\n")
    run(code=1)
    printed = capsys.readouterr().err
    assert "manifest.jsonl, line 1: not what was written there" in printed and message in printed
    assert printed.count("\n") == 1 and pipeline.loaded == []


def test_a_second_run_in_the_folder_of_another_is_refused(pipeline, tmp_path, capsys):
    (tmp_path / "jobs.txt").write_text("a cat\n")
    (tmp_path / "out").mkdir()
    with manifest.Manifest(tmp_path / "out", Listener()):
        run(code=1)
    assert "another npdiffusion is at work in this folder" in capsys.readouterr().err
    run()


def test_output_has_to_be_a_folder(pipeline, tmp_path, capsys):
    (tmp_path / "jobs.txt").write_text("a cat\n")
    assert cli.main(["--prompts", "jobs.txt", "-o", "out.png"]) == 1
    printed = capsys.readouterr().err
    assert "--output: with --prompts it is a folder" in printed and "its name has a place for the number: %03d\n" in printed


def numbered(*arguments):
    assert cli.main(["--prompts", "jobs.txt", "-o", "out/cat %02d.jpg", "--steps", "1", *arguments]) == 0
    return [line["file"] for line in lines()]


def test_a_list_is_numbered_in_another_format_and_goes_on_where_it_was_stopped(pipeline, tmp_path):
    (tmp_path / "jobs.txt").write_text("a cat --seed 1\na dog --seed 2\n")
    run("--steps", "1")                                       # a folder as older versions left it
    (tmp_path / "jobs.txt").write_text("a cat --seed 1\na dog --seed 2\na cow\na cat --seed 1\n")
    expected = ["a-cat-1.png", "a-dog-2.png", "cat 01.jpg", "cat 02.jpg"]
    assert numbered("--grid") == expected and numbered() == expected and len(pipeline.asked) == 4
    (tmp_path / "out" / "cat 02.jpg").unlink()
    (tmp_path / "jobs.txt").write_text("a cow\na cat --seed 1\na cat --seed 1\na cat --seed 1 --cfg-scale 2\n")
    assert numbered() == [*expected, "cat 03.jpg"]            # the second keeps its number, no other picture gets it
    assert files(tmp_path / "out") == sorted([*expected, "cat 03.jpg", "grid.png", manifest.NAME])
    for name in expected[2:]:
        with Image.open(tmp_path / "out" / name) as image:
            assert image.format == "JPEG" and "Steps: 1" in text_inside.read_text(tmp_path / "out" / name)


# ---- killed at any point

def killed_at(point, *arguments):
    """Run the command in a process that is killed before or after its `point`th write or move → whether it was"""
    child = os.fork()
    if child == 0:
        left = [point]

        def deadly(function):
            def run_or_die(*args, **named):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = function(*args, **named)
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result
            return run_or_die
        try:
            for name in ("fsync", "link", "unlink"):
                setattr(os, name, deadly(getattr(os, name)))
            images._temporary = deadly(images._temporary)
            sys.stdout = sys.stderr = open(os.devnull, "w")
            os._exit(cli.main(list(arguments)))
        finally:
            os._exit(99)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("seed", ["", " --seed 1"], ids=["random seeds", "given seeds"])
def test_killed_anywhere_and_run_again_each_picture_is_there_exactly_once(seed, pipeline, tmp_path):
    (tmp_path / "jobs.txt").write_text(f"a cat{seed} --batch-count 2\na dog{seed}\n")
    point, killed = 0, True
    while killed:
        point += 1
        folder = tmp_path / f"out{point}"
        command = ["--prompts", "jobs.txt", "-o", f"{folder}/", "--steps", "1"]
        killed = killed_at(point, *command)
        made = {path.name: path.read_bytes() for path in folder.glob("*.png")}
        assert cli.main(command) == 0
        found = lines(folder)
        assert [line["prompt"] for line in found] == ["a cat", "a cat", "a dog"], point
        assert sorted([line["file"] for line in found] + [manifest.NAME]) == files(folder), point
        for name, content in made.items():
            assert (folder / name).read_bytes() == content
        for line in found:
            assert f"Seed: {line['seed']}" in settings_in(folder / line["file"])
    assert point > 20


def test_half_a_line_at_the_end_is_cut_off(pipeline, tmp_path):
    (tmp_path / "jobs.txt").write_text("a cat --seed 1\na dog --seed 2\n")
    run()
    path = tmp_path / "out" / manifest.NAME
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    (tmp_path / "out" / "a-dog-2.png").unlink()
    for length in range(first, len(content), 37):
        path.write_bytes(content[:length])
        run()
        assert [line["file"] for line in lines()] == ["a-cat-1.png", "a-dog-2.png"]
        assert path.read_bytes()[:first] == content[:first]
        (tmp_path / "out" / "a-dog-2.png").unlink()


# ---- sheets

def colours(path, size, columns):
    """The colour at the top left corner of each cell of a sheet's first row"""
    with Image.open(path) as image:
        return [image.getpixel((GAP + column * (size + GAP), GAP)) for column in range(columns)]


@pytest.fixture
def colourful(pipeline, monkeypatch):
    """Pictures have the colour of their seed and the number of their steps."""
    def make(resolved, callback, preview):
        FakePipeline.make(pipeline, resolved, callback, preview)
        return [Image.new("RGB", resolved.size, (resolved.seeds[0], resolved.steps, 0))]
    monkeypatch.setattr(pipeline, "make", make)
    return pipeline


def test_a_grid_shows_all_pictures(colourful, tmp_path, capsys):
    cli.main([PROMPT, "-b", "3", "-s", "5", "--steps", "2", "--grid", "-W", "64", "-H", "64"])
    assert files(tmp_path) == ["a-red-apple-5-grid.png", "a-red-apple-5.png", "a-red-apple-6.png", "a-red-apple-7.png"]
    assert colours("a-red-apple-5-grid.png", 64, 2) == [(5, 2, 0), (6, 2, 0)]
    assert capsys.readouterr().out.splitlines()[-1] == "a-red-apple-5-grid.png"


def test_the_grid_of_a_run_that_is_resumed_shows_all_and_is_made_once(colourful, tmp_path):
    (tmp_path / "jobs.txt").write_text("a cat --seed 1\n")
    run("--steps", "2")
    (tmp_path / "jobs.txt").write_text("a cat --seed 1\na dog --seed 2\n")
    for _ in range(2):
        run("--steps", "2", "--grid", "-W", "128")
        run("--steps", "2", "--grid")
    assert [name for name in files(tmp_path / "out") if "grid" in name] == ["grid-2.png", "grid.png"]
    assert colours("out/grid.png", 128, 2) == [(1, 2, 0), (2, 2, 0)]


def test_samplers_are_compared_on_one_sheet(colourful, tmp_path, capsys):
    assert cli.main([PROMPT, "--compare-samplers", "euler,heun", "--compare-steps", "2,3", "-s", "7", "-b", "2"]) == 0
    assert files(tmp_path) == ["a-red-apple-7-samplers.png"]
    assert [(asked["seed"], asked["steps"], asked["sampler"]) for asked in colourful.asked] == [
        (seed, steps, sampler) for seed in (7, 8) for steps in (2, 3) for sampler in ("euler", "heun")]
    assert colours("a-red-apple-7-samplers.png", 128, 2) == [(7, 2, 0), (7, 2, 0)]


def test_captions_name_what_differs_and_the_seconds(colourful, monkeypatch):
    made = []
    monkeypatch.setattr("npdiffusion.jobs.destinations.sheet", lambda pictures, captions, columns=None: made.append(captions)
                        or Image.new("RGB", (8, 8)))
    cli.main([PROMPT, "--compare-samplers", "euler,heun", "--steps", "3"])
    assert [caption.partition(",")[0] for caption in made[0]] == ["euler", "heun"]
    assert all(caption.endswith(" s") for caption in made[0])
    cli.main([PROMPT, "-b", "2", "-s", "3", "--grid"])
    assert made[1] == ["seed 3", "seed 4"]


def test_all_samplers_start_from_one_seed(colourful):
    cli.main([PROMPT, "--compare-samplers", "euler,heun,ddim"])
    assert len({asked["seed"] for asked in colourful.asked}) == 1


def test_a_comparison_that_is_stopped_shows_what_there_is(colourful, tmp_path, capsys):
    def stop():
        if len(colourful.asked) == 3:
            raise KeyboardInterrupt
    colourful.act = stop
    assert cli.main([PROMPT, "--compare-samplers", "euler,heun,ddim", "-o", "sheet.png"]) == 130
    assert files(tmp_path) == ["sheet.png"]
    assert "2 of 3 pictures are on the sheet" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["--compare-samplers", "euler,eulr"], "--compare-samplers: 'eulr' is unknown, did you mean euler?"),
    (["--compare-samplers", "euler,euler"], "--compare-samplers: 'euler,euler' names one of them twice"),
    (["--compare-samplers", "euler", "--grid"], "--compare-samplers: it makes one sheet, so --grid doesn't go with it"),
    (["--compare-steps", "10"], "--compare-steps: it gives a sheet of --compare-samplers a row"),
    (["--compare-samplers", "ddim,euler", "--schedule", "karras"], "--schedule: ddim walks over the time steps"),
])
def test_comparisons_that_make_no_sense(arguments, message, pipeline, capsys):
    assert cli.main([PROMPT, *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"npdiffusion: error: {message}")


# ---- wildcards

def test_wildcards_are_chosen_by_the_seed_and_written_as_chosen(pipeline, tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "colour.txt").write_text("red\nblue\ngreen\n")
    for _ in range(2):
        cli.main(["a __colour__ cat", "-n", "__colour__", "-b", "9", "-s", "1", "--wildcards", "words"])
    first, second = ([(asked["prompt"], asked["negative_prompt"]) for asked in half]
                     for half in np.array_split(np.array(pipeline.asked, object), 2))
    assert first == second
    assert {prompt for prompt, _ in first} == {f"a {colour} cat" for colour in ("red", "blue", "green")}
    assert any(prompt.split()[1] != negative for prompt, negative in first)
    for path in tmp_path.glob("*.png"):
        assert "__" not in settings_in(path)


def test_the_manifest_knows_wildcards_by_their_names(pipeline, tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "colour.txt").write_text("red\n")
    (tmp_path / "jobs.txt").write_text("a __colour__ cat\n")
    run("--wildcards", "words")
    assert lines()[0]["prompt"] == "a red cat" and lines()[0]["asked"]["prompt"] == "a __colour__ cat"
    (tmp_path / "words" / "colour.txt").write_text("blue\n")
    run("--wildcards", "words")
    assert len(pipeline.asked) == 1


# ---- what belongs to others


@pytest.mark.parametrize("content", [
    b'{"my": "line"}\n{"the last one": "has no newline"}', b"one line of somebody else, without a newline", b"[1, 2]\n",
    b'{"file": "a.png", "seed": 1, "asked": {}}\nof somebody else',
    *(json.dumps({"file": name, "seed": 1, "asked": {}}).encode() + b"\n"
      for name in ("a\0b.png", "x" * 252 + ".png", "\ud800.png", "../a.png", ".."))])
def test_a_manifest_that_is_not_ours_is_refused_and_left_as_it_is(content, pipeline, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a cat\n")
    (tmp_path / "manifest.jsonl").write_bytes(content)
    assert cli.main(["--prompts", "p.txt"]) == 1
    assert (tmp_path / "manifest.jsonl").read_bytes() == content and not pipeline.asked
    assert "manifest.jsonl, line " in capsys.readouterr().err


def test_a_manifest_that_is_a_link_or_a_pipe_is_not_followed(pipeline, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a cat\n")
    (tmp_path / "victim").write_bytes(b"")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "manifest.jsonl").symlink_to(tmp_path / "victim")
    assert cli.main(["--prompts", "p.txt", "-o", "linked/"]) == 1
    assert (tmp_path / "victim").read_bytes() == b"" and "a symbolic link, which isn't followed" in capsys.readouterr().err
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped" / "manifest.jsonl")
    assert cli.main(["--prompts", "p.txt", "-o", "piped/"]) == 1
    assert "manifest.jsonl: not a file" in capsys.readouterr().err


def test_odd_names_of_unfinished_files_stop_nothing_and_stay(pipeline, tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n")
    names = [f".npdiffusion-{who}-0123abcd.part" for who in ("9" * 30, "0", "-1", "٣", "x", str(os.getpid()))]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".npdiffusion-4194999-01234567.part").touch()          # of a process that can't be
    assert cli.main(["--prompts", "p.txt"]) == 0
    assert [name for name in files(tmp_path) if name.endswith(".part")] == sorted(names)


def test_a_tilde_that_the_shell_left_in_place_is_the_home_folder(pipeline, tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    Image.new("RGB", (64, 64)).save(home / "i.png")
    (home / "p.txt").write_text("a cat --init-image ~/i.png\n")
    assert cli.main(["a cat", "--init-image=~/i.png", "--mask=~/i.png", "--output=~/o.png"]) == 0
    assert cli.main(["--like=~/o.png", "--output=~/again.png"]) == 0
    assert cli.main(["--prompts=~/p.txt", "--output=~/many/"]) == 0
    assert cli.main(["metadata", "~/o.png"]) == 0
    assert files(home) == ["again.png", "i.png", "many", "o.png", "p.txt"] and not (tmp_path / "~").exists()
