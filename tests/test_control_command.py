"""ControlNets, their maps and a refiner from the command line, in lists, manifests and clusters."""
import json

import numpy as np
import pytest
from PIL import Image

from npdiffusion.command import cli, like, options
from npdiffusion.errors import UserError
from npdiffusion.jobs import cluster, prompts_file, worker
from npdiffusion.jobs.entries import Entry
from npdiffusion.pictures.images import save_png
from npdiffusion.pictures.text_inside import png_info
from npdiffusion.settings import Request
from tests.fake_pipeline import PROMPT, settings_in

TWO = ["--control", "canny/", "--control-image", "a.png", "--control-scale", "0.7", "--control-from", "canny",
       "--control", "depth/", "--control-image", "b.png", "--control-scale", "0.5", "--control-from", "none"]


@pytest.fixture
def led(pipeline, tmp_path):
    """A pipeline with two ControlNets, and pictures a.png and b.png"""
    pipeline.controlnets = [None, None]
    for name in "a.png", "b.png":
        Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    return pipeline


def test_repeated_options_belong_together_in_their_order(led):
    assert cli.main([PROMPT, *TWO, "-o", "out.png"]) == 0
    (_, loaded), = led.loaded
    request = led.made[0].request
    assert loaded["control"] == ("canny/", "depth/") and request.control_image == ("a.png", "b.png")
    assert (request.control_scale, request.control_from) == ((0.7, 0.5), ("canny", "none"))
    assert 'Control map: "canny, none", Control weight: "0.7, 0.5", Control start: 0, Control end: 1' in settings_in("out.png")


def test_a_controlnet_without_a_picture_is_told_before_anything_is_loaded(led, capsys):
    assert cli.main([PROMPT, "--control", "canny/"]) == 2
    assert "--control: --control-image, the picture that leads it, is missing" in capsys.readouterr().err
    assert cli.main([PROMPT, *TWO, "--control-image", "gone.png"]) == 1
    assert "gone.png: can't be read" in capsys.readouterr().err and led.loaded == []


def test_lines_and_columns_of_files_are_repeated_likewise(tmp_path):
    (tmp_path / "list.txt").write_text("a cat --control-image a.png --control-image b.png --control-scale 1,0.5\n")
    (tmp_path / "list.csv").write_text("prompt,control_image,control_image,control_scale\na cat,a.png,b.png,\"1,0.5\"\n")
    for name in "list.txt", "list.csv":
        (_, row), = prompts_file.read_prompts(tmp_path / name)
        assert row == {"prompt": "a cat", "control_image": ("a.png", "b.png"), "control_scale": (1, 0.5)}
    (tmp_path / "list.csv").write_text("prompt,steps,steps\na cat,1,2\n")
    with pytest.raises(UserError, match="the column steps is there twice"):
        prompts_file.read_prompts(tmp_path / "list.csv")


def test_a_manifest_tells_pictures_with_another_controlnet_or_refiner_apart(led, tmp_path):
    (tmp_path / "list.txt").write_text("a cat --control-image a.png --control-image b.png\n")
    command = ["--prompts", "list.txt", "-o", "out/", "-s", "1", "--control", "canny/", "--control"]
    for last in ["depth/"], ["depth/"], ["pose/"], ["pose/", "--refiner", "xl/"]:
        assert cli.main([*command, *last]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [(line["asked"]["control"][1], line["asked"].get("refiner")) for line in lines] == [
        ("depth/", None), ("pose/", None), ("pose/", "xl/")]


def test_settings_of_a_controlnet_inside_a_picture_are_said_not_to_be_followed(led, tmp_path, capsys):
    cli.main([PROMPT, *TWO, "-o", "out.png"])
    capsys.readouterr()
    liked = like.settings_like("out.png", {})
    assert not [name for name in liked.found if name.startswith("control")]
    said = capsys.readouterr().err
    assert "Control weight: 0.7, 0.5 is not followed (it was made from another picture, to be given with --control-" in said
    again = like.settings_like("out.png", {"control_image": ("a.png", "b.png")})
    assert (again.found["control_scale"], again.found["control_from"]) == ((0.7, 0.5), ("canny", "none"))


def test_a_refiner_inside_a_picture_that_isnt_here_is_said_not_to_be_followed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "a cat\nSteps: 3, Seed: 1, Size: 64x64, Refiner: sd_xl_refiner_1.0, Refiner switch at: 0.5, Version: npdiffusion 1"
    save_png(Image.new("RGB", (8, 8)), tmp_path / "in.png", png_info(text))
    found = like.settings_like("in.png", {}).found
    assert "refiner" not in found and "refiner_at" not in found
    assert "Refiner: sd_xl_refiner_1.0 is not followed (it is not among those" in capsys.readouterr().err


def test_workers_get_the_pictures_themselves_and_are_known_by_all_their_files(led, tmp_path):
    request = cluster.request_of(Entry(Request(PROMPT, control_image=["a.png", "b.png"])))
    again = Request.from_json(request.to_json())
    assert [each.getpixel((0, 0)) for each in again.control_image] == [(255, 0, 0)] * 2
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "x.safetensors").write_bytes(b"1")
    (tmp_path / "net.safetensors").write_bytes(b"2")
    load = dict.fromkeys(("path_or_id", "dtype", "lora_dir", *worker.PARTS.values())) | {"path_or_id": str(tmp_path / "model")}
    plain, controlled, refined = (worker.identity_of(load | more) for more in (
        {}, {"control": ("net.safetensors",)}, {"refiner": "model"}))
    assert controlled["ControlNet 0"] not in (None, plain["model"]) and refined["refiner"] == plain["model"]
    assert "ControlNet 0" not in plain and "refiner" not in plain


def test_map_writes_the_map_to_a_file(led, tmp_path, capsys):
    Image.fromarray(np.where(np.arange(64) < 32, 0, 255).astype(np.uint8)[None].repeat(64, axis=0)).save("a.png")
    assert cli.main(["map", "canny", "a.png"]) == 0 and cli.main(["map", "blur:3", "a.png", "-o", "b.webp"]) == 0
    assert capsys.readouterr().out.split() == ["a-canny.png", "b.webp"]
    edges = np.asarray(Image.open("a-canny.png"))
    assert edges[:, 31:33].max() == 255 and edges[:, :30].max() == 0
    assert cli.main(["map", "depth", "a.png"]) == 2 and "depth is found by a network" in capsys.readouterr().err


def test_inside_looks_into_one_model():
    with pytest.raises(SystemExit):
        options.parse_options([PROMPT, "--refiner", "xl/", "--inside", "report.html"])
