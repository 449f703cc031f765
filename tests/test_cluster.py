"""--cluster: pictures by many processes are the single machine's, each once, whatever is killed."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("distributed", reason="distributed is not installed")

from npdiffusion.command import cli
from npdiffusion.jobs import cluster
from npdiffusion.jobs.entries import Entry
from npdiffusion.jobs.listener import Listener
from npdiffusion.settings import Request
from tests.processes import free_port, until

COUNT = 10


def start(*arguments, module="npdiffusion"):
    """A process of its own"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)], env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def table(folder, count=COUNT):
    (folder / "prompts.csv").write_text("prompt,seed\n" + "".join(f"a cat,{seed}\n" for seed in range(count)))
    return folder / "prompts.csv"


def pictures(folder):
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).glob("*.png")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What a single machine makes: {name: file}"""
    folder = tmp_path_factory.mktemp("alone")
    assert cli.main(["--prompts", str(table(folder)), "--steps", "3", "-o", f"{folder}/out/"]) == 0
    return pictures(folder / "out")


def check(folder, alone):
    """Each picture once, and the single machine's bit for bit"""
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert sorted(line["seed"] for line in lines) == list(range(len(alone)))
    assert pictures(folder) == alone


def test_processes_of_this_machine_make_the_single_machines_pictures(alone, tmp_path):
    run = start("--prompts", table(tmp_path), "--steps", 3, "-o", f"{tmp_path}/out/", "--cluster", "local:2")
    out, _ = run.communicate(timeout=200)
    assert run.returncode == 0, out
    assert f"{COUNT} of {COUNT} pictures are made" in out
    check(tmp_path / "out", alone)


def test_a_worker_and_the_scheduler_may_be_killed(alone, tmp_path):
    port = free_port()
    address, processes = f"tcp://127.0.0.1:{port}", []

    def scheduler():
        processes.append(start("--host", "127.0.0.1", "--port", port, "--no-dashboard", "--no-show",
                               module="distributed.cli.dask_scheduler"))
        return processes[-1]
    try:
        first = scheduler()
        workers = [start("worker", address) for _ in range(2)]
        processes += workers
        run = start("--prompts", table(tmp_path), "--steps", 3, "-o", f"{tmp_path}/out/", "--cluster", address)
        processes.append(run)
        until(lambda: len(pictures(tmp_path / "out")) >= 2)
        workers[0].send_signal(signal.SIGKILL)
        until(lambda: len(pictures(tmp_path / "out")) >= 4)
        first.send_signal(signal.SIGKILL)
        time.sleep(1)
        scheduler()
        out, _ = run.communicate(timeout=200)
        assert run.returncode == 0, out
        check(tmp_path / "out", alone)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_model_is_known_by_its_weights(tmp_path):
    for name, content in (("a", b"x" * 5000), ("b", b"x" * 5000), ("c", b"y" * 5000), ("d", b"x" * 4999)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.safetensors").write_bytes(content)
    found = [cluster.digest(tmp_path / name) for name in "abcd"]
    assert found[0] == found[1] and len({*found}) == 3
    assert cluster.digest(tmp_path / "a" / "w.safetensors") == cluster.digest(tmp_path / "b" / "w.safetensors")


class Future:
    """One that is done at once"""
    def __init__(self, outcome):
        self.outcome = outcome

    def done(self):
        return True

    def result(self):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def release(self):
        pass


class Client:
    """A cluster with as many slots as are asked for; outcomes come from a function of the request."""
    status = "running"

    def __init__(self, outcome, slots=2):
        self.outcome, self.slots, self.sent, self.most = outcome, slots, [], 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def nthreads(self):
        return {"worker": self.slots}

    def submit(self, function, task, **options):
        self.sent.append(json.loads(task["request"])["prompt"])
        return Future(self.outcome(self.sent))

    def cancel(self, futures):
        pass


class Place:
    def __init__(self):
        self.saved = []

    def save(self, image, text, entry, record):
        self.saved.append(entry.request.prompt)


def png():
    import io

    from PIL import Image
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def drive(client, prompts):
    place = Place()
    driver = cluster.Driver(lambda: client, [Entry(Request(prompt)) for prompt in prompts], place, Listener(), None, {})
    return driver.run(), place.saved


def test_a_picture_that_always_goes_wrong_is_given_up_and_the_others_are_made(monkeypatch):
    monkeypatch.setattr(cluster, "PAUSE", 0)
    client = Client(lambda sent: ValueError("bad") if sent[-1] == "bad" else (png(), None, {}, []))
    failed, saved = drive(client, ["a", "bad", "b"])
    assert [entry.request.prompt for entry, _ in failed] == ["bad"] and sorted(saved) == ["a", "b"]
    assert client.sent.count("bad") == cluster.MOST_TRIES


def test_two_copies_of_a_picture_are_saved_once(monkeypatch):
    monkeypatch.setattr(cluster, "PAUSE", 0)
    client = Client(lambda sent: (png(), None, {}, []), slots=4)
    failed, saved = drive(client, ["a"])
    assert saved == ["a"] and client.sent == ["a", "a"] and not failed


@pytest.mark.parametrize(("words", "said"), [
    (["a cat", "--cluster", "local:2"], "it is for the pictures of --prompts"),
    (["--prompts", "p.csv", "--cluster", "local:2", "--preview", "linear"], "doesn't go with --preview")])
def test_what_does_not_go_with_a_cluster_is_refused(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.csv").write_text("prompt\na cat\n")
    assert cli.main(words) == 2 and said in capsys.readouterr().err
