"""The server's queue and its own interface, /api."""
import base64
import io
import itertools
import json
import re
import signal
import socket
import threading
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

import npdiffusion
from npdiffusion import study
from npdiffusion.command import cli
from npdiffusion.errors import UserError
from npdiffusion.server import leading
from npdiffusion.server.catalogue import Catalogue
from npdiffusion.server.job import Job
from npdiffusion.server.queue import Turns
from npdiffusion.settings import SETTINGS, Request
from tests.fake_pipeline import FakePipeline
from tests.processes import free_port, modules_after, run_python, until
from tests.served import Gate, ask, pixels, png, served, start_process

DOT = png(Image.new("RGB", (8, 8)))


# ---- pictures

@pytest.mark.filterwarnings("ignore")
def test_a_picture_is_the_commands_bit_for_bit(real, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawing = Image.radial_gradient("L").resize((96, 90))
    drawing.save("drawing.png")
    Image.linear_gradient("L").save("mask.png")
    settings = dict(steps=3, sampler="dpm++2m", schedule="karras", seed=7, width=64, height=72, strength=0.9, mask_blur=2)
    job = real.post("/api/jobs", settings | {
        "prompt": "a red apple", "negative_prompt": "blue", "count": 2, "init_image": png(drawing),
        "mask_image": png(Image.linear_gradient("L")), "guidance_scale": 5})
    done = real.finished(job)
    assert done["state"] == "done" and len(done["pictures"]) == 2
    options = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert cli.main(["a red apple", "-n", "blue", "-b", "2", "-i", "drawing.png", "--mask", "mask.png", "--cfg-scale", "5",
                     "-o", "command/", *options]) == 0
    for number, file in zip(done["pictures"], sorted((tmp_path / "command").iterdir())):
        assert real.get(f"/api/pictures/{number}.png") == file.read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_what_comes_with_the_embedded_model_is_listed_and_used_without_a_folder(real, tmp_path):
    info = real.get("/api/info")
    assert info["leaders"] == {"scribble": ["control", "a ControlNet of the embedded model"]} and info["loras"] == ["lcm"]
    Image.radial_gradient("L").resize((128, 128)).save(tmp_path / "outline.png")
    settings = {"prompt": "a cat <lora:lcm>", "steps": 2, "sampler": "lcm", "seed": 7}
    job = real.post("/api/jobs", settings | {"control": "scribble",
                                             "control_image": png(Image.open(tmp_path / "outline.png"))})
    number, = real.finished(job)["pictures"]
    assert cli.main(["a cat <lora:lcm>", "--steps", "2", "--sampler", "lcm", "--seed", "7", "--control", "scribble",
                     "--control-image", f"{tmp_path}/outline.png", "-o", f"{tmp_path}/out.png"]) == 0
    assert real.get(f"/api/pictures/{number}.png") == (tmp_path / "out.png").read_bytes()


def test_events_tell_steps_and_show_the_picture_that_is_to_be(real):
    job = real.post("/api/jobs", {"prompt": "a cat", "steps": 12, "seed": 1})
    with urllib.request.urlopen(f"{real.url}/api/jobs/{job['id']}/events", timeout=30) as stream:
        states = [json.loads(line[6:]) for line in stream if line.startswith(b"data: ")]
    steps = [state["step"] for state in states]
    assert states[-1]["state"] == "done" and steps == sorted(steps) and len({*steps}) > 3
    preview, = {state["preview"] for state in states if "preview" in state} and [
        next(state["preview"] for state in reversed(states) if "preview" in state)]
    assert pixels(base64.b64decode(preview.partition(",")[2])).shape == (128, 128, 3)


def test_a_random_seed_is_told_and_gives_the_picture_again(real):
    first = real.finished(real.post("/api/jobs", {"prompt": "a star", "steps": 2, "seed": -1}))
    again = real.finished(real.post("/api/jobs", {"prompt": "a star", "steps": 2, "seed": first["seed"]}))
    one, other = (real.get(f"/api/pictures/{state['pictures'][0]}.png") for state in (first, again))
    assert np.array_equal(pixels(one), pixels(other))


def test_words_that_the_model_does_not_know_are_noted_in_the_answer(tmp_path):
    with served(tmp_path / "pictures") as server:        # here, not in a fixture: pytest takes warnings for itself at each test
        done = server.finished(server.post("/api/jobs", {"prompt": "a zeppelin", "sampler": "euler", "steps": 1, "eta": 0.5}))
    assert [note for note in done["notes"] if "zeppelin" in note]
    assert [note for note in done["notes"] if note.startswith("eta has no effect")]


def test_the_gallery_has_what_was_made_with_its_settings(real):
    done = real.finished(real.post("/api/jobs", {"prompt": "a moon", "steps": 2, "seed": 11}))
    newest = real.get("/api/pictures?count=1")["pictures"][0]
    assert newest["number"] == done["pictures"][0] and newest["settings"]["steps"] == 2 and newest["seed"] == 11
    assert Image.open(io.BytesIO(real.get(f"/api/pictures/{newest['number']}/small"))).format == "WEBP"
    found = real.call("POST", "/api/settings", body=real.get(f"/api/pictures/{newest['number']}.png"))[2]
    assert found["settings"]["prompt"] == "a moon" and found["settings"]["seed"] == 11 and found["settings"]["steps"] == 2


def test_tokens_are_shown_as_the_prompt_is_read(real):
    found = real.post("/api/tokens", {"prompt": "a (red:1.3) zeppelin"})
    assert [each for each in found["chunks"][0] if each[0] == "red"] == [["red", 1.3]] and "zeppelin" in found["unknown"]


def test_a_look_into_a_picture_shows_where_its_words_were_looked_at(real):
    done = real.finished(real.post("/api/jobs", {"prompt": "a red apple", "steps": 3, "seed": 2}))
    number = done["pictures"][0]
    assert real.call("GET", f"/api/pictures/{number}/look")[0] == 404
    assert real.finished(real.post(f"/api/pictures/{number}/look"))["state"] == "done"
    found = real.get(f"/api/pictures/{number}/look")["words"]
    assert [each["word"] for each in found] == ["a", "red", "apple"]
    expected = study.attention_maps(npdiffusion.load(), "a red apple", steps=3, seed=2).of("apple")
    opacity = pixels(base64.b64decode(found[2]["map"].partition(",")[2]))[:, :, 3]
    assert opacity.max() == 225 and np.unravel_index(opacity.argmax(), opacity.shape) == np.unravel_index(
        expected.argmax(), expected.shape)
    assert real.get("/api/pictures?count=1")["pictures"][0]["number"] == number       # no new picture


def test_the_report_of_a_picture_is_a_page_that_may_not_ask_the_server(real):
    number, = real.finished(real.post("/api/jobs", {"prompt": "a red apple", "steps": 2, "seed": 2}))["pictures"]
    assert real.call("GET", f"/api/pictures/{number}/report")[0] == 404
    assert real.finished(real.post(f"/api/pictures/{number}/report"))["state"] == "done"
    status, headers, found = real.call("GET", f"/api/pictures/{number}/report")
    text = found.decode()
    assert status == 200 and headers["content-type"].startswith("text/html") and "Inside “a red apple”" in text
    rules = [rule.split()[0] for rule in headers["content-security-policy"].split(";")]
    assert "sandbox" in rules and "connect-src" not in rules and "allow-same-origin" not in headers["content-security-policy"]


# ---- the queue

def test_clients_take_turns():
    turns = Turns()
    for client, count in (("a", 4), ("b", 1), ("c", 2)):
        turns.add(Job(client, "api", "m", count, 0, "", 1.0))
    order = []
    while job := turns.next():
        order.append(job.client)
        job.number += 1
        if job.number == job.count:
            turns.remove(job)
    assert "".join(order) == "abcacaa"


def test_models_are_not_loaded_by_turns():
    turns, order, loaded = Turns(), "", None
    for client in "ab":
        turns.add(Job(client, "api", client, 20, 0, "", 1.0))
    while job := turns.next(loaded):
        order, loaded = order + job.model, job.needs
        job.number += 1
        if job.number == job.count:
            turns.remove(job)
    changes = sum(one != other for one, other in itertools.pairwise(order))
    assert order.count("a") == order.count("b") == 20 and changes <= 5 and order.index("b") <= 9


def test_what_is_ahead_is_what_comes_before():
    """Said before anything is made, it equals what is then made before the first picture of each job."""
    rng, turns, jobs = np.random.default_rng(3), Turns(), []
    for number in range(30):
        jobs.append(Job(str(rng.integers(5)), "api", "m", int(rng.integers(1, 5)), number, "", 2.0))
        turns.add(jobs[-1])
    said, made = {job.id: turns.ahead(job) for job in jobs}, 0
    while job := turns.next():
        if job.number == 0:
            assert said.pop(job.id) == (made, 2.0 * made)
        job.number, made = job.number + 1, made + 1
        if job.number == job.count:
            turns.remove(job)
    assert not said


def test_one_client_can_not_fill_the_queue(fake):
    gate = Gate(fake.pipeline)
    answers = [fake.call("POST", "/api/jobs", {"prompt": "x", "steps": 1}, x_client="a") for _ in range(101)]
    assert [status for status, *_ in answers] == [202] * 100 + [503] and answers[-1][1]["x-should-retry"] == "false"
    assert fake.call("POST", "/api/jobs", {"prompt": "x", "steps": 1}, x_client="b")[0] == 202
    gate.event.set()


def test_a_job_that_waits_is_cancelled_without_a_step(fake):
    gate = Gate(fake.pipeline)
    first, second = (fake.post("/api/jobs", {"prompt": name, "steps": 1}) for name in ("first", "second"))
    gate.reached.wait(10)
    assert fake.get(f"/api/jobs/{second['id']}")["ahead"] == 1        # the one at work
    assert fake.post(f"/api/jobs/{second['id']}/cancel")["state"] == "cancelled"
    gate.event.set()
    assert fake.finished(first)["state"] == "done" and [asked["prompt"] for asked in fake.pipeline.asked] == ["first"]


def test_a_picture_at_work_ends_at_its_next_step(real):
    job = real.post("/api/jobs", {"prompt": "a cat", "steps": 900, "sampler": "euler"})
    while real.get(f"/api/jobs/{job['id']}")["step"] < 3:
        time.sleep(0.01)
    real.post(f"/api/jobs/{job['id']}/cancel")
    done = real.finished(job, 5)
    assert done["state"] == "cancelled" and done["step"] < 500 and done["pictures"] == []
    assert real.finished(real.post("/api/jobs", {"prompt": "a dog", "steps": 1}))["state"] == "done"


def test_a_picture_that_is_being_decoded_ends_at_the_next_operation(real, monkeypatch):
    decode, operations = real.engine.pipeline.vae.decode, []

    def cancelled(*arguments):
        operations.append("begun")
        real.engine.cancel(real.engine.now)
        decode(*arguments)
        operations.append("done")
    with monkeypatch.context() as patch:
        patch.setattr(real.engine.pipeline.vae, "decode", cancelled)
        done = real.finished(real.post("/api/jobs", {"prompt": "a cat", "steps": 2}))
    assert done["state"] == "cancelled" and done["step"] == 2 and operations == ["begun"]
    assert real.finished(real.post("/api/jobs", {"prompt": "a dog", "steps": 1}))["state"] == "done"


@pytest.mark.parametrize("error", [ValueError("/home/me/secret.txt"), MemoryError(), UserError("/home/me/a.png: damaged")])
def test_whatever_goes_wrong_with_a_picture_ends_that_job_alone(fake, error, caplog):
    def fail():
        fake.pipeline.act = lambda: None
        raise error
    fake.pipeline.act = fail
    bad, good = (fake.post("/api/jobs", {"prompt": name, "steps": 1}) for name in ("bad", "good"))
    state = fake.finished(bad)
    assert state["state"] == "failed" and state["error"] and "/home" not in state["error"]
    assert fake.finished(good)["state"] == "done" and fake.engine.alive


def test_a_full_disk_fails_the_picture_and_not_the_server(fake, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr("npdiffusion.pictures.images.os.fsync", full)
        state = fake.finished(fake.post("/api/jobs", {"prompt": "x", "steps": 1}))
    assert state["state"] == "failed" and "No space left" in state["error"]
    assert fake.finished(fake.post("/api/jobs", {"prompt": "x", "steps": 1}))["state"] == "done"


def test_hundreds_are_queued_half_vanish_and_nothing_is_made_for_those(fake):
    """The short version of a thousand requests from fifty clients."""
    gate, count = Gate(fake.pipeline), 200
    body = [json.dumps({"prompt": f"of {number % 20}", "steps": 1, "user": f"client {number % 20}"}).encode()
            for number in range(count)]
    connections = []
    for content in body:
        connection = socket.create_connection(("127.0.0.1", fake.port), timeout=60)
        connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                           b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))
        connections.append(connection)
    until(lambda: len(fake.engine.turns) == count)
    for number, connection in enumerate(connections):
        if number % 20 < 10:
            connection.close()
    until(lambda: len(fake.engine.turns) <= count // 2 + 1)
    asked = len(fake.pipeline.asked)
    gate.event.set()
    until(lambda: not fake.engine.active())
    made = [each["prompt"] for each in fake.pipeline.asked]
    assert not {*made[asked:]} & {f"of {number}" for number in range(10)} and len(made) <= count // 2 + 1
    turns = [made[asked + first:asked + first + 10] for first in range(0, count // 2 - 10, 10)]
    assert all(len({*turn}) == 10 for turn in turns[:-1])                 # each client has one of ten
    for number, connection in enumerate(connections):
        if number % 20 >= 10:
            with connection.makefile("rb") as file:
                assert b'"b64_json"' in file.read()
            connection.close()
    assert not fake.engine.turns.clients and fake.engine.store.waiting() == []


def test_position_and_time_left_are_told(fake):
    gate = Gate(fake.pipeline)
    jobs = [fake.post("/api/jobs", {"prompt": "x", "steps": 1, "count": 2}, x_client=name) for name in "abc"]
    states = [fake.get(f"/api/jobs/{job['id']}") for job in jobs]
    assert [state["ahead"] for state in states] == [0, 1, 2]
    assert states[0]["seconds_left"] <= states[1]["seconds_left"] <= states[2]["seconds_left"] > 0
    gate.event.set()


def test_another_model_is_loaded_when_its_turn_comes_and_one_that_can_not_be_fails_its_job(tmp_path, monkeypatch):
    pipelines = {"embedded": FakePipeline(), "other": FakePipeline()}
    loaded = []

    def load(name):
        loaded.append(name)
        if name == "broken":
            raise UserError("/models/broken.safetensors: cut short")
        return pipelines[name]
    monkeypatch.setattr(Catalogue, "models", {"embedded": "", "other": "", "broken": ""})
    with served(tmp_path / "pictures", loaders=load) as server:
        jobs = [server.finished(server.post("/api/jobs", {"prompt": "x", "steps": 1, "model": name}))
                for name in ("embedded", "other", "broken", "other")]
    assert [job["state"] for job in jobs] == ["done", "done", "failed", "done"]
    assert jobs[2]["error"] == "broken.safetensors: cut short"
    assert loaded == ["embedded", "other", "broken", "other"]
    assert [len(pipeline.asked) for pipeline in pipelines.values()] == [1, 2]


def test_the_description_has_every_path_and_every_setting(fake):
    found = fake.get("/openapi.json")
    for path, ways in found["paths"].items():
        for method in ways:
            status, *_ = fake.call(method.upper(), re.sub(r"\{\w+\}", "0", path), {} if method == "post" else None)
            assert status != 405, path
    body = found["paths"]["/api/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"].keys() == {"model", *leading.PICTURES, *SETTINGS}
    assert body["properties"]["steps"]["maximum"] == 1000
    fields = found["paths"]["/sdapi/v1/img2img"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert fields["inpaint_full_res"] == {"default": True, "type": "boolean"}


def test_the_page_and_requests_do_not_wait_until_the_model_is_loaded(tmp_path):
    loaded = threading.Event()

    def load(name):
        assert loaded.wait(30)
        return FakePipeline()
    with served(tmp_path / "pictures", loaders=load, at_once=True) as server:
        assert server.call("GET", "/")[0] == 200 and server.get("/api/info")["loaded"] is None
        job = server.post("/api/jobs", {"prompt": "x", "steps": 1})
        assert job["state"] == "queued"
        loaded.set()
        assert server.finished(job)["state"] == "done" and server.get("/api/info")["loaded"] == "embedded"


def test_a_model_that_can_not_be_loaded_ends_the_server_in_one_line(tmp_path):
    model = tmp_path / "broken.safetensors"
    model.write_bytes(b"no model")
    done = run_python("-m", "npdiffusion", "serve", "--port", "0", "-o", f"{tmp_path}/x/", "-m", str(model))
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("npdiffusion: error: ")
    assert "broken.safetensors" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


# ---- what is refused

@pytest.mark.parametrize(("content", "status", "said"), [
    ({"prompt": "x", "step": 3}, 400, "did you mean steps?"),
    ({"prompt": "x", "steps": "many"}, 400, "steps is 'many'"),
    ({"prompt": "x", "width": 4096}, 413, "up to 2048 pixels"),
    ({"prompt": "x", "width": 1024, "hires": 3}, 413, "up to 2048 pixels"),
    ({"prompt": "x", "steps": 100, "count": 11}, 413, "at most 1000"),
    ({"prompt": "x", "width": 100}, 400, "multiple of 8"),
    ({"prompt": "x", "mask_image": "aaaa"}, 400, "mask_image"),
    ({"prompt": "x", "mask_blur": 4}, 400, "mask_image"),
    ({"prompt": "x", "init_image": "/etc/passwd"}, 400, "not followed"),
    ({"prompt": "x", "init_image": {"png": ""}}, 400, "base64"),
    ({"prompt": "x", "model": "../secret"}, 400, "no model"),
    ({"prompt": "a <lora:ink>"}, 400, "--lora-dir"),
    ({"prompt": "x", "control_image": "aaaa"}, 400, "control_image"),
    ({"prompt": "x", "ip_image": DOT}, 400, "ip_adapter and ip_image go together, a picture for each: 0 and 1 are given"),
    ({"prompt": "x", "control_scale": 0.5}, 400, "control_image is needed"),
    ({"prompt": "x", "control": ["canny"], "control_image": DOT}, 400, "no ControlNet 'canny' here (--control-dir "),
    ({"prompt": "x", "control": 5}, 400, "control: a list of names is expected"),
    ({"prompt": "x", "t2i_adapter": ["a"]}, 400, "t2i_adapter: a name is expected"),
    ({"prompt": "x", "control_image": [DOT] * 5}, 413, "at most 4"),
    ({"prompt": "x", "init_image": [DOT] * 2}, 400, "init_image: one picture is expected"),
    ({"prompt": 5}, 400, "must be a text"),
    ([], 400, "object"),
])
def test_what_can_not_be_made_is_refused_before_it_waits(fake, content, status, said):
    found, _, answer = fake.call("POST", "/api/jobs", content)
    assert found == status and said in answer["error"] and not fake.engine.active()


def test_a_number_that_json_does_not_have_is_refused(fake):
    body = '{"prompt": "x", "guidance_scale": NaN}'
    assert fake.call("POST", "/api/jobs", body=body, content_type="application/json")[0] == 400
    assert fake.call("POST", "/api/jobs", body="[" * 100_000, content_type="application/json")[0] == 400


def test_what_is_not_there_is_not_found(fake):
    for path in ("/api/jobs/none", "/api/pictures/5.png", "/api/pictures/5/small", "/nowhere"):
        assert fake.call("GET", path)[0] == 404, path


# ---- an end, and a new beginning

def test_what_waits_outlives_the_server_and_nothing_is_made_twice(tmp_path):
    pipeline = FakePipeline()
    gate = Gate(pipeline)
    with served(tmp_path / "pictures", pipeline) as server:
        one, two = (server.post("/api/jobs", {"prompt": name, "steps": 1, "count": 2, "seed": 5}) for name in ("one", "two"))
        gate.reached.wait(10)
        server.engine.stop()
        gate.event.set()
    again = FakePipeline()
    with served(tmp_path / "pictures", again) as server:
        assert [server.finished(job)["state"] for job in (one, two)] == ["done", "done"]
        files = sorted(path.name for path in (tmp_path / "pictures").glob("*.png"))
    assert files == ["one-5.png", "one-6.png", "two-5.png", "two-6.png"]
    assert len(pipeline.asked) + len(again.asked) <= 5                # what was at work may be made again


def test_a_picture_that_ends_the_server_again_and_again_is_given_up(tmp_path):
    from npdiffusion.server.store import Store
    store, job = Store(tmp_path), Job("a", "api", "m", 1, 2**64 - 1, "x", 1.0)
    store.add(job, Request("x").to_json())
    for tries in (1, 2, 3):
        job.state, job.tries = "running", tries
        store.write(job)
        left = store.waiting()
        assert [each.state for each in left] == ["queued"][:3 - tries]
    found = store.find(job.id)
    assert found.state == "failed" and "3 times" in found.error and found.seed == 2**64 - 1
    store.close()


def test_a_server_that_is_killed_loses_nothing_and_repeats_nothing(tmp_path):
    port, count = free_port(), 12
    process, _ = start_process(tmp_path / "pictures", port)
    jobs = [ask(port, "/api/jobs", {"prompt": "a cat", "steps": 5, "seed": seed}) for seed in range(count)]
    time.sleep(0.4)
    process.kill()
    process.wait()
    process, _ = start_process(tmp_path / "pictures", port)
    until(lambda: all(ask(port, f"/api/jobs/{job['id']}")["state"] == "done" for job in jobs))
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0 and "stopped" in process.stderr.read()
    lines = [json.loads(line) for line in (tmp_path / "pictures" / "manifest.jsonl").read_text().splitlines()]
    assert sorted(line["seed"] for line in lines) == list(range(count))
    assert sorted(line["file"] for line in lines) == sorted(path.name for path in (tmp_path / "pictures").glob("*.png"))


# ---- the command

def test_help_of_serve_imports_nothing_heavy():
    found, text = modules_after("serve", "--help")
    assert "--api-key" in text and not {"numpy", "PIL", "starlette", "uvicorn", "sqlite3", "numba"} & found


def test_a_missing_extra_is_named_in_one_line(tmp_path):
    code = ("import importlib.util as u, sys; find = u.find_spec\n"
            "u.find_spec = lambda name, *a: None if name in ('starlette', 'uvicorn') else find(name, *a)\n"
            "from npdiffusion.command.cli import main; sys.exit(main(['serve']))")
    done = run_python("-c", code)
    assert done.returncode == 1
    assert done.stderr == ('npdiffusion: error: the server needs starlette and uvicorn: pip install "npdiffusion[serve]"\n')


def test_a_port_in_use_is_said_in_one_line(fake, tmp_path):
    done = run_python("-m", "npdiffusion", "serve", "--port", str(fake.port), "-o", f"{tmp_path}/x/")
    assert done.returncode == 1 and f"port {fake.port} is in use" in done.stderr and done.stderr.count("\n") == 1
