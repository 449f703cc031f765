"""Benchmarks: operations counted as torch would execute them, turns, and tables that end in one line of JSON."""
import argparse
import functools
import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from PIL import Image

from bench import (
    gradients,
    growth,
    models,
    network,
    operations,
    peak,
    peers,
    plot,
    results,
    savings,
    train,
    tune,
    turbo,
    turns,
    xl,
)
from npdiffusion import kernels, load
from npdiffusion.errors import UserError
from npdiffusion.kernels.products import job_sizes
from npdiffusion.models import flops
from npdiffusion.models.conditioning import Conditioning
from npdiffusion.models.configs import CLIPTextConfig, UNetConfig, VAEConfig
from npdiffusion.models.unet import UNet2DConditionModel

TINY_UNET = UNetConfig(block_out_channels=(32, 64), cross_attention=(True, False), heads=(4, 4), layers_per_block=1,
                       cross_attention_dim=24, norm_num_groups=8, sample_size=8)
TINY_VAE = VAEConfig(block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=8)


def executed(module, *inputs):
    """Floating-point operations of the products that a torch module executes, counted by hooks"""
    total = 0

    def convolution(layer, _, output):
        nonlocal total
        total += 2 * output.numel() * math.prod(layer.weight.shape[1:])

    def linear(layer, arguments, output):
        nonlocal total
        total += 2 * output.numel() * layer.in_features

    def attention(layer, arguments, options, output):
        nonlocal total
        x = arguments[0] if arguments else options["hidden_states"]
        context = options.get("encoder_hidden_states")
        tokens = math.prod(x.shape[1:-1]) if x.ndim == 3 else math.prod(x.shape[2:])
        total += 4 * len(x) * tokens * (tokens if context is None else context.shape[1]) * layer.to_q.out_features

    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(convolution)
        elif isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(linear)
        elif isinstance(layer, Attention):
            layer.register_forward_hook(attention, with_kwargs=True)
    with torch.no_grad():
        module(*inputs)
    return total


@pytest.mark.parametrize("sizes, height, width", [(TINY_UNET, 8, 12), (UNetConfig(), 32, 32)], ids=["tiny", "SD v1"])
def test_operations_of_the_unet_are_those_that_torch_executes(sizes, height, width):
    with torch.device("meta"):
        model = peers.unet_module(models.torch_model(sizes))
        found = executed(model, torch.zeros(1, 4, height, width), torch.zeros(1),
                         torch.zeros(1, flops.WORDS, sizes.cross_attention_dim))
    assert sum(flops.unet(sizes, height, width).values()) == found


@pytest.mark.parametrize("sizes", [TINY_VAE, VAEConfig()], ids=["tiny", "SD v1"])
def test_operations_of_the_decoder_are_those_that_torch_executes(sizes):
    with torch.device("meta"):
        found = executed(peers.decoder_module(models.torch_model(sizes)), torch.zeros(1, 4, 8, 16))
    assert sum(flops.decoder(sizes, 8, 16).values()) == found


def test_a_sample_at_512_pixels_takes_803_gflop_and_its_decoding_2515():
    assert round(sum(flops.unet(UNetConfig(), 64, 64).values()) / 1e9) == 803
    assert round(sum(flops.decoder(VAEConfig(), 64, 64).values()) / 1e9) == 2515


def test_systems_take_turns():
    order = []
    times = turns.take({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == list("ababab") and [len(values) for values in times.values()] == [3, 3]


def test_a_system_may_be_called_twice_a_turn_and_the_second_call_counts(monkeypatch):
    order, clock = [], iter(range(100))
    monkeypatch.setattr(turns, "seconds", lambda call: (call(), next(clock))[1])
    times = turns.take({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, twice={"a"})
    assert order == list("aabaabaab") and times == {"a": [0, 2, 4], "b": [1, 3, 5]}


def test_an_unknown_peer_is_named_as_an_error():
    with pytest.raises(ValueError, match="jax"):
        turns.names("torch,jax")


def test_no_peer_is_an_empty_string():
    assert turns.names("") == []


def options(add_arguments, *words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([*words, "--size", "64", "--repeats", "1", "--threads", "1"])


@pytest.mark.parametrize("dtype", turns.PEERS_DTYPES)
@pytest.mark.parametrize("run, sizes", [(network.run_step, TINY_UNET), (network.run_decode, TINY_VAE)],
                         ids=["step", "decode"])
def test_the_last_line_has_times_of_ours_and_torch_and_their_results_agree(run, sizes, dtype, capsys):
    run(options(network.add_arguments, "--against", "torch", "--dtype", dtype), sizes)
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(facts["seconds"][name] > 0 for name in ("npdiffusion", "torch"))
    assert facts["difference"]["torch"] < {"float32": 1e-4, "bfloat16": 0.1}[dtype]


def test_int8_is_measured_beside_bfloat16(capsys):
    network.run_step(options(network.add_arguments, "--against", "", "--dtype", "int8"), TINY_UNET)
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(facts["seconds"][name] > 0 for name in ("npdiffusion", "in bfloat16"))
    assert 0 < facts["difference"]["in bfloat16"] < 0.2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_sizes_of_jobs_are_tried_and_written_into_the_table(dtype, capsys, monkeypatch, tmp_path):
    table = tmp_path / "job_sizes.json"
    table.write_text('{"other 8×8": {"tiles": 3}}', encoding="utf-8")
    monkeypatch.setattr(job_sizes, "TABLE", table)
    monkeypatch.setattr(job_sizes, "of", functools.cache(job_sizes.of.__wrapped__))      # it remembers what it read
    monkeypatch.setattr(tune, "WORTH", -1)               # the fastest is taken then, however little it gains
    tune.run(options(tune.add_arguments, "--dtype", dtype, "--write"), TINY_UNET, TINY_VAE)
    printed = capsys.readouterr().out
    facts = json.loads(printed.splitlines()[-1])
    assert job_sizes.read() == {"other 8×8": {"tiles": 3}, job_sizes.kind(dtype): facts["sizes"]}
    assert [*facts["sizes"]] == tune.sizes_of(dtype)
    assert all(f"{name} {value} " in printed for name in facts["sizes"] for value in tune.CANDIDATES[name])


def test_a_size_is_changed_only_if_least_and_median_are_better():
    assert tune.choose({"8": [1.0, 1.1, 1.2], "12": [0.9, 1.0, 1.1], "16": [0.95, 1.0, 1.0]}, 8) == 12
    assert tune.choose({"8": [1.0, 1.1, 1.2], "12": [0.9, 1.1, 1.3]}, 8) == 8
    assert tune.choose({"8": [1.0, 1.1, 1.2], "12": [1.0, 1.0, 1.0]}, 8) == 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_size_of_jobs_changes_no_number(dtype):
    unet = models.ours(TINY_UNET, dtype)
    conditioning = Conditioning(models.normal(2, flops.WORDS, TINY_UNET.cross_attention_dim))
    latents = models.normal(1, 32, 32, TINY_UNET.in_channels)
    found = unet(latents, network.TIME, conditioning)
    for sizes in job_sizes.JobSizes(1, 2, 1, 64), job_sizes.JobSizes(30, 40, 20, 512):
        with tune.trying(dtype, sizes):
            np.testing.assert_array_equal(unet(latents, network.TIME, conditioning), found)


def test_pictures_that_save_something_are_measured_beside_those_that_do_not(capsys, tmp_path):
    parser = argparse.ArgumentParser()
    savings.add_arguments(parser)
    savings.run(parser.parse_args(["--questions", "1", "--steps", "4", "--threads", "1", "--font", f"{tmp_path}/none.ttf"]))
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 35 < facts["int8"]["dB"] < facts["bfloat16"]["dB"] < 70
    assert 10 < facts["half the steps"]["dB"] < facts["3/4 of the steps"]["dB"] < 60


def test_decibels_are_those_of_the_mean_squared_error_and_questions_are_of_all_kinds():
    picture = np.full((8, 8, 3), 100, np.uint8)
    found = savings.decibels([picture] * 3, [picture + 1, picture + 10, picture])
    assert found[:2] == pytest.approx([48.1308, 28.1308], abs=1e-4) and found[2] > 70
    asked = savings.questions(20)
    assert len(asked) == 20 and len({question.kind for question in asked}) == 6


@pytest.mark.parametrize(("what", "sizes"), [("unet", TINY_UNET), ("vae", TINY_VAE), ("digits", None), ("ddpm", TINY_UNET),
                                             ("lora", TINY_UNET)])
def test_a_training_step_has_times_of_ours_and_torch_and_their_losses_agree(what, sizes, capsys):
    train.run(options(train.add_arguments, what, "--batch", "2"), sizes)
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    layouts = ["torch"] if what == "lora" else ["torch", "torch, channels last"]
    assert [*facts["seconds"]] == ["npdiffusion", *layouts] and min(facts["seconds"].values()) > 0
    assert max(facts["difference"].values()) < 1e-4


def test_whole_gradients_agree_with_torchs_tensor_by_tensor(capsys):
    gradients.run(options(gradients.add_arguments, "--batch", "2"), TINY_UNET)
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["tensors"] == len(models.tensors(UNet2DConditionModel(TINY_UNET))) and facts["largest"] < 1e-4
    assert facts["whole"] < 1e-5


@pytest.mark.parametrize("peer, limit", [("openvino", 1e-3), ("onnxruntime", 1e-5)])
def test_peers_compute_the_same_step(peer, limit, capsys):
    pytest.importorskip(peer)
    network.run_step(options(network.add_arguments, "--against", peer), TINY_UNET)
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["difference"][peer] < limit and peer in facts["versions"]


def test_openvinos_int8_is_calibrated_and_measured_beside_ours(capsys):
    for needed in "openvino", "nncf":
        pytest.importorskip(needed)
    network.run_step(options(network.add_arguments, "--against", "openvino", "--dtype", "int8"), TINY_UNET)
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(facts["seconds"]) == ["npdiffusion", "in bfloat16", "openvino"] and "nncf" in facts["versions"]
    assert facts["difference"]["in bfloat16"] < facts["difference"]["openvino"] < 0.5


def test_a_quantised_model_multiplies_bytes():
    for needed in "openvino", "nncf":
        pytest.importorskip(needed)
    x = np.random.default_rng(0).standard_normal((4, 64), dtype=np.float32)
    model = peers.quantised(peers.converted(torch.nn.Linear(64, 64), [x]), [[x]])
    assert [each.get_output_element_type(0).to_string() for each in model.get_ops()
            if each.get_type_name() == "Constant" and tuple(each.get_output_shape(0)) == (64, 64)] == ["i8"]


@pytest.mark.parametrize("has_nncf", [True, False])
def test_peers_without_int8_are_left_out_and_that_is_said(has_nncf, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if has_nncf or name != "nncf" else None)
    arguments = argparse.Namespace(against=["torch", "openvino"], dtype="int8")
    turns.leave_out_without_int8(arguments)
    said = capsys.readouterr().err
    assert arguments.against == ["openvino"] * has_nncf and "without torch, which has no int8 here" in said
    assert ("without openvino, whose int8 needs nncf" in said) != has_nncf


def test_torch_compile_runs_what_torch_runs_and_without_gradients():
    """Through a compiler that changes nothing: TorchInductor's takes minutes."""
    module, made = torch.nn.Linear(3, 2), []

    def compiled(given):
        made.append(given)
        return lambda x: given(x) + torch.is_grad_enabled()

    x = np.ones((1, 3), np.float32)
    expected = peers.on_torch(module, [x], "float32", 1)()
    np.testing.assert_array_equal(peers.on_torch(module, [x], "float32", 1, compiled)(), expected)
    assert made == [module]


def test_a_peer_without_the_dtype_is_left_out_and_that_is_said(capsys):
    arguments = argparse.Namespace(against=["onnxruntime"], dtype="bfloat16")
    turns.leave_out_missing(arguments)
    assert arguments.against == [] and "without onnxruntime, which has float32 alone here" in capsys.readouterr().err


def test_peers_that_take_minutes_are_asked_for_by_name():
    parser = argparse.ArgumentParser()
    network.add_arguments(parser)
    assert parser.parse_args([]).against == ["torch", "openvino"]
    assert parser.parse_args(["--against", "torch.compile,onnxruntime"]).against == ["torch.compile", "onnxruntime"]


def tiny(family):
    """Sizes of a small model of a family"""
    full = xl.sizes(family)
    levels, texts = len(full["unet"].block_out_channels), [name for name in full if name.startswith("text")]
    found = {name: replace(full[name], num_hidden_layers=2, hidden_size=32, intermediate_size=64, num_attention_heads=2,
                           projection_dim=48) for name in texts}
    added = dict(down_depths=((0, 0), (1, 1), (1, 1)), up_depths=((0, 0, 0), (1, 1, 1), (1, 1, 1)), mid_depth=1,
                 added_width=48 + 6 * 256) if len(texts) > 1 else {}
    unet = replace(full["unet"], block_out_channels=(32, 64, 64, 64)[:levels], heads=(2,) * levels,
                   cross_attention_dim=32 * len(texts), **added)
    return found | {"unet": unet, "vae": replace(full["vae"], block_out_channels=(32, 32, 32, 32))}


@pytest.mark.parametrize("guided", [[], ["--guided"]], ids=["alone", "guided"])
@pytest.mark.parametrize("family", turbo.FAMILIES)
def test_a_picture_in_one_step_is_timed_stage_by_stage_ours_and_the_peers(family, guided, tmp_path, monkeypatch):
    sizes = tiny(turbo.FAMILIES[family])
    monkeypatch.setattr(xl, "sizes", lambda family: sizes)
    asked = options(turbo.add_arguments, "--family", family, "--dtype", "float32", *guided)
    xl.write_folder(tmp_path / "model", turbo.FAMILIES[family])
    found = turbo.ours(tmp_path / "model", asked, 1)
    assert {"text", "sampling", "decoding"} <= found["stages"].keys() and found["loading"] > 0 < found["memory"]
    for peer in turbo.SYSTEMS:
        if importlib.util.find_spec(peer):
            found = turbo.on_peer(peer, [*sizes], sizes, asked, 1)
            assert found["stages"].keys() == sizes.keys()
            assert len(found["pictures"]) == 1 and found["pictures"][0] >= sum(found["stages"].values())


def test_what_models_of_a_peer_take_in_processes_of_their_own_is_added_up(monkeypatch):
    monkeypatch.setattr(turbo, "alone", lambda function, name, parts, *_: dict(
        loading=1.0, memory=10, pictures=[2.0, 3.0], stages=dict.fromkeys(parts, 0.5)))
    asked = options(turbo.add_arguments, "--apart")
    assert turbo.peer("torch", {"unet": None, "vae": None, "text_encoder": None}, asked, 1) == dict(
        loading=3.0, memory=30, pictures=[6.0, 9.0], stages=dict(text_encoder=0.5, unet=0.5, vae=0.5))


def test_parts_of_a_profile_add_up_to_the_whole(capsys):
    operations.run(options(operations.add_arguments), TINY_UNET)
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    parts = facts["parts"]
    assert sum(part["seconds"] for part in parts.values()) == pytest.approx(facts["seconds"], rel=1e-3)
    assert parts["other"]["seconds"] >= 0


def test_profiling_leaves_the_operations_as_they_were():
    with operations.timed([]):
        assert "linear" in vars(kernels)
    assert "linear" not in vars(kernels)


def test_the_peak_is_the_best_rate_of_its_turns():
    found = peak.Peak(threads=1)
    found()
    first = found.flops
    found()
    assert found.flops >= first > 1e8


TINY_TEXT = CLIPTextConfig(vocab_size=600, hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=3)


@pytest.mark.filterwarnings("ignore")
def test_a_written_model_draws_the_same_here_and_in_diffusers(tmp_path):
    """So both benchmarks of whole pictures measure the same work."""
    folder = models.write_folder(tmp_path / "model", TINY_UNET, TINY_VAE, TINY_TEXT)
    ours, = load(str(folder)).generate("abc", steps=4, seed=0)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    theirs.tokenizer.model_max_length = 77
    theirs.set_progress_bar_config(disable=True)
    image, = theirs("abc", num_inference_steps=4, generator=torch.Generator().manual_seed(0)).images
    assert np.abs(np.asarray(ours, int) - np.asarray(image, int)).max() <= 1


@pytest.mark.parametrize("missing, left, said", [
    ({"openvino"}, ["torch"], "without openvino, which is not installed here"),
    ({"torch"}, [], "without torch and openvino, which are not installed here"),
    ({"diffusers", "openvino"}, [], "without torch and openvino, which are not installed here"),
    (set(), ["torch", "openvino"], ""),
])
def test_what_is_not_installed_is_left_out_and_its_extra_named(missing, left, said, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else name)
    arguments = argparse.Namespace(against=turns.USUAL)
    turns.leave_out_missing(arguments)
    assert arguments.against == left
    message = capsys.readouterr().err
    assert message.startswith(said) and bool(message) == ('pip install -e ".[bench]"' in message)


@pytest.fixture
def no_peers(monkeypatch):
    """Nothing of the extra is installed."""
    for name in ("torch", "diffusers", "transformers", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("run, sizes", [(network.run_step, TINY_UNET), (network.run_decode, TINY_VAE)],
                         ids=["step", "decode"])
def test_without_peers_there_is_a_table_of_ours_alone(run, sizes, no_peers, capsys):
    arguments = options(network.add_arguments)
    turns.leave_out_missing(arguments)
    run(arguments, sizes)
    *lines, last = capsys.readouterr().out.splitlines()
    assert list(json.loads(last)["seconds"]) == ["npdiffusion"] and "torch" not in "".join(lines)


def test_without_peers_a_model_of_random_weights_is_written_and_loads(no_peers, tmp_path):
    pipeline = load(str(models.write_folder(tmp_path / "model", TINY_UNET, TINY_VAE, TINY_TEXT)))
    assert pipeline.encode_prompt("abc").shape == (1, 77, 24)


def test_results_show_each_command_and_its_table(monkeypatch, tmp_path):
    facts = {"seconds": {"npdiffusion": 1.0, "openvino": 2.0}, "gflop": 100.0, "peak_gflops": 200.0, "size": 64,
             "threads": 1, "images": 1}
    monkeypatch.setattr(results, "measured", lambda command: ("a table", facts))
    page = tmp_path / "RESULTS.md"
    parser = argparse.ArgumentParser()
    results.add_arguments(parser)
    results.run(parser.parse_args(["--page", str(page)]))
    text = page.read_text(encoding="utf-8")
    assert "python -m bench decode --size 512 --repeats 5 --dtype bfloat16" in text and "a table" in text
    assert "| 64 | 1.00 | 2.00 | 1.00 | 100 | 0.50 |" in text


# ---- charts; the figures of this page are made up

PAGE = """# Benchmarks

Some CPU (AVX2, FMA), 4 cores, 25 GB, 2026-01-01.

```
step of 1 image, float32, 512×512, 3 turns
                   median ms    least ms
npdiffusion             5000        4900
torch                  10000        9900
peak                    7105
```

```
decode of 1 image, float32, 512×512, 3 turns
npdiffusion             6000        4000
torch                  20000       19000
```

## Step against picture size, float32

| size | npdiffusion s | ours ÷ first row |
| --- | --- | --- |
| 256 | 1.45 | 1.00 |
| 1024 | 44.62 | 30.72 |

## Step against threads, float32

| threads | npdiffusion s |
| --- | --- |
| 1 | 11.71 |
"""


def test_a_picture_is_its_steps_and_a_decoding_and_the_slowest_comes_first():
    found = plot.pictures(PAGE)
    assert found["npdiffusion, float32"] == {20: 106, 50: 256} and found["torch, float32"] == {20: 220, 50: 520}
    assert [name for name in found if name not in plot.ELSEWHERE] == ["torch, float32", "npdiffusion, float32"]
    assert plot.growth(PAGE) == {"float32": {256: 1.45, 1024: 44.62}} and plot.machine(PAGE) == "Some CPU, 4 cores"


def test_what_was_measured_elsewhere_is_marked_and_written_down():
    notes = (results.PAGE.parent / "NOTES.md").read_text(encoding="utf-8").partition("## Measured elsewhere")[2]
    for name, (step, decode) in plot.ELSEWHERE.items():
        assert name.endswith("*") and f"{step} s" in notes and (not decode or f"{decode} s" in notes)


def test_the_charts_have_each_system_of_the_results():
    page = results.PAGE.read_text(encoding="utf-8")
    assert {*plot.pictures(page)} == {*plot.ELSEWHERE, *(f"{system}, {dtype}" for system in ("npdiffusion", "OpenVINO", "torch")
                                                         for dtype in turns.PEERS_DTYPES)}


@pytest.mark.parametrize("seconds, text", [(73.5, "1:14"), (2880, "48:00"), (59.7, "1:00"), (4.4, "0:04")])
def test_times_of_charts_are_minutes_and_seconds(seconds, text):
    assert plot.clock(seconds) == text


def charts(folder):
    (folder / "RESULTS.md").write_text(PAGE, encoding="utf-8")
    plot.run(argparse.Namespace(page=folder / "RESULTS.md", output=folder))


def test_charts_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    charts(tmp_path)
    assert all(Image.open(tmp_path / name).width == 840 for name in ("picture.png", "step.png"))


def test_without_matplotlib_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[bench\]"'):
        charts(tmp_path)


def test_parity_runs_as_a_file():
    """Its folder then comes first on the path: a file there named like one of Python's own would be taken for it."""
    parity = pathlib.Path(__file__).resolve().parent.parent / "bench" / "parity.py"
    table = subprocess.run([sys.executable, parity, "--tiny"], capture_output=True, text=True, check=True).stdout
    assert "UNet, tiny" in table


def test_the_page_of_growth_has_a_row_for_all_that_was_timed_and_a_chart(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    for name, value in dict(SIZES=(64, 128), IMAGES=(2,), SMALL=64, USUAL=128, LARGE=128, elsewhere=lambda *_: 1.5).items():
        monkeypatch.setattr(growth, name, value)
    monkeypatch.setattr(growth.machine, "cpu_features", lambda: ["AVX2"])
    parser = argparse.ArgumentParser()
    growth.add_arguments(parser)
    growth.run(parser.parse_args(["--threads", "2", "-o", str(tmp_path)]), TINY_UNET, TINY_VAE)
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    what = [(row["what"], row["size"], row["images"], row["threads"]) for row in facts["rows"]]
    assert what == [("step", 64, 1, 2), ("step", 128, 1, 2), ("step", 64, 2, 2), ("step", 128, 1, 1), ("decoding", 128, 1, 2),
                    ("decoding in tiles", 128, 1, 2), ("step, AVX2", 64, 1, 2)]
    assert all(row["announced"] > 0 for row in facts["rows"] if row["what"] == "step")
    assert "| step, AVX2 | 64² | 1 | 2 |  | 1.50 |  | 1.50 |" in (tmp_path / "GROWTH.md").read_text(encoding="utf-8")
    assert Image.open(tmp_path / "growth.png").width == 840


@pytest.mark.skipif("AVX2" not in kernels.machine.cpu_features(), reason="this processor has no AVX2")
def test_a_process_that_is_given_avx2_alone_uses_its_registers():
    code = "from npdiffusion.kernels.products.microkernel import PRODUCT; print(PRODUCT.lanes, PRODUCT.rows)"
    answer = subprocess.run([sys.executable, "-c", code], env={**os.environ, **growth.AVX2}, capture_output=True, text=True,
                            check=True)
    assert answer.stdout.split() == ["8", "6"]
