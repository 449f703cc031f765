"""--cluster: pictures by many processes are the single machine's, each once, whatever is killed."""
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import time

import distributed
import numpy as np
import pytest

from bench import cluster as simulation
from npdiffusion.command import cli
from npdiffusion.command import cluster as command
from npdiffusion.command import worker as worker_command
from npdiffusion.errors import UserError
from npdiffusion.jobs import cluster, worker
from npdiffusion.jobs.entries import Entry
from npdiffusion.jobs.listener import Listener
from npdiffusion.settings import Request
from tests.clusters import COUNT, check, pictures, start, table
from tests.processes import free_port, until

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What a single machine makes: {name: file}"""
    folder = tmp_path_factory.mktemp("alone")
    assert cli.main(["--prompts", str(table(folder)), "--steps", "3", "-o", f"{folder}/out/"]) == 0
    return pictures(folder / "out")


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
    found = [worker.digest(tmp_path / name) for name in "abcd"]
    assert found[0] == found[1] and len({*found}) == 3
    assert worker.digest(tmp_path / "a" / "w.safetensors") == worker.digest(tmp_path / "b" / "w.safetensors")


# ---- who fits

def options(path, **others):
    """Keywords of npdiffusion.load"""
    return dict.fromkeys((*worker.PARTS.values(), "dtype", "lora_dir")) | {"path_or_id": str(path)} | others


@pytest.fixture
def models(tmp_path):
    """Folders "a" and "b" of different weights, and one of LoRAs"""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.safetensors").write_bytes(name.encode() * 100)
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "ink.safetensors").write_bytes(b"ink")
    return tmp_path


def introduced(monkeypatch, own, wanted, loras=(), free=False):
    """In what a worker with the keywords `own` differs from a driver with the keywords `wanted`, and what it missed"""
    monkeypatch.setattr(worker, "own", {"load": own, "identity": worker.identity_of(own), "free": free, "pipeline": "own"})
    monkeypatch.setattr(worker, "asked", {})
    identity = worker.identity_of(wanted, loras)
    found, missed = worker.introduce(identity, worker.places_of(wanted), loras)
    return worker.difference(found, identity), missed


def test_a_worker_with_another_model_unet_dtype_or_lora_is_told_from_one_that_fits(models, monkeypatch):
    a, b = options(models / "a"), options(models / "b")
    assert introduced(monkeypatch, a, a) == ("", [])
    assert introduced(monkeypatch, b, a)[0].startswith("model ")
    assert introduced(monkeypatch, a, a | {"unet": str(models / "b")})[0].startswith("unet none in place of ")
    assert introduced(monkeypatch, a | {"dtype": "bfloat16"}, a)[0] == "dtype bfloat16 in place of float32"
    with_lora = a | {"lora_dir": str(models / "loras")}
    assert introduced(monkeypatch, with_lora, with_lora, ["ink"]) == ("", [])
    assert introduced(monkeypatch, a, with_lora, ["ink"])[0].startswith("lora ink none in place of ")
    monkeypatch.setattr(worker, "__version__", "0.1")
    old = worker.identity_of(a)
    monkeypatch.undo()
    assert worker.difference(old, worker.identity_of(a)).startswith("npdiffusion 0.1 in place of ")


def test_a_worker_without_a_model_takes_the_drivers_from_the_same_path_or_the_hubs_cache(models, monkeypatch):
    a, b = options(models / "a"), options(models / "b")
    assert introduced(monkeypatch, b, a, free=True) == ("", [])
    with pytest.raises(worker.Unasked):
        worker.pipeline_for({"wanted": worker.identity_of(b)})
    loads = []
    monkeypatch.setattr(worker, "loaded", lambda text: loads.append(json.loads(text)) or "loaded")
    assert worker.pipeline_for({"wanted": worker.identity_of(a)}) == "loaded" and loads[0]["path_or_id"] == str(models / "a")
    snapshot = models / "hub" / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (models / "hub" / "models--org--name" / "refs").mkdir()
    (models / "hub" / "models--org--name" / "refs" / "main").write_text("abc")
    (snapshot / "w.safetensors").write_bytes(b"a" * 100)
    monkeypatch.setenv("HF_HUB_CACHE", str(models / "hub"))
    by_id = a | {"vae": "org/name"}
    assert introduced(monkeypatch, b, by_id, free=True) == ("", [])
    assert [*worker.asked.values()] == [{"path_or_id": str(models / "a"), "vae": str(snapshot)}]


def test_a_worker_makes_the_pictures_of_two_lists_each_with_its_model_and_none_for_a_third_that_it_lacks(models, monkeypatch):
    """The second list comes while the first is at work, and asks; neither is made with the other's model afterwards."""
    a, b, gone = options(models / "a"), options(models / "b"), options(models / "a", dtype="bfloat16")
    assert introduced(monkeypatch, b, a, free=True) == ("", [])
    monkeypatch.setattr(worker, "loaded", lambda text: json.loads(text)["path_or_id"])
    assert worker.introduce(worker.identity_of(b), worker.places_of(b), [])[1] == []
    made = [worker.pipeline_for({"wanted": worker.identity_of(each)}) for each in (a, b, a)]
    assert made == [str(models / "a"), "own", str(models / "a")]
    worker.introduce(worker.identity_of(gone), worker.places_of(gone), [])
    with pytest.raises(worker.Unasked):
        worker.pipeline_for({"wanted": worker.identity_of(gone)})


def test_a_worker_without_the_files_says_which_path_it_missed(models, monkeypatch):
    a, b = options(models / "a"), options(models / "b")
    identity, places = worker.identity_of(a), worker.places_of(a)
    monkeypatch.setattr(worker, "own", {"load": b, "identity": worker.identity_of(b), "free": True})
    (models / "a" / "w.safetensors").unlink()
    found, missed = worker.introduce(identity, places, [])
    assert missed == [str(models / "a")] and worker.difference(found, identity).startswith("model ")
    said = []
    client = Client(lambda sent: 1 / 0, introduce=lambda: (found, missed))
    driver = cluster.Driver(lambda: client, [Entry(Request("x"))], Place(), Notes(said), (identity, places, []), {})
    with pytest.raises(UserError, match="none of the 1 workers fits: model "):
        driver.run()
    assert f"its files were not at {models / 'a'} there, nor in the hub's cache" in said[0]


@pytest.mark.parametrize("first", [
    OSError("gone"), distributed.TimeoutError(), distributed.CancelledError(),
    distributed.scheduler.KilledWorker("x", None, 3)])
def test_a_worker_that_dies_while_it_is_asked_is_asked_again_and_one_of_another_program_is_left_out(first):
    answers, said, clock = [first, ({"model": "a"}, [])], [], Clock()
    client, place = Client(lambda sent: MADE, introduce=lambda: answers.pop(0)), Place()
    driver = cluster.Driver(lambda: client, [Entry(Request("x"))], place, Notes(said), ({"model": "a"}, {}, []), {},
                            (clock.now, clock.wait))
    assert driver.run() == [] and place.saved == ["x"] and said == [] and answers == []
    answers[:] = [ModuleNotFoundError("npdiffusion")]
    driver.todo.append(Entry(Request("y")))
    driver.known.clear()
    with pytest.raises(UserError, match="none of the 1 workers fits: it is a worker of another program"):
        driver.run()


def test_a_worker_that_stands_still_when_it_is_asked_holds_up_nobody_and_is_forgotten_when_it_goes():
    client, place, clock = Client(lambda sent: MADE, introduce=lambda: ({"model": "a"}, [])), Place(), Clock()
    submit = client.submit
    client.submit = lambda function, *arguments, workers=None, **options: (
        Future(None) if workers == ["still"] else submit(function, *arguments, workers=workers, **options))
    client.nthreads = lambda: {"worker": 1} | ({"still": 1} if clock.now() < 1 else {})
    driver = cluster.Driver(lambda: client, [Entry(Request(str(number))) for number in range(100)], place, Notes([]),
                            ({"model": "a"}, {}, []), {}, (clock.now, clock.wait))
    assert driver.run() == [] and len(place.saved) == 100 and driver.asked == {} and len(client.cancelled) == 1


def test_a_scheduler_of_another_version_is_refused_in_one_line():
    with pytest.raises(UserError, match="tcp://head:1: its scheduler is distributed 1.0, here is "):
        command.check_version("tcp://head:1", {"distributed": "1.0"})
    command.check_version("tcp://head:1", {"distributed": distributed.__version__})


# ---- the driver, with a cluster that is played

class Notes(Listener):
    def __init__(self, said):
        self.note = said.append


class Future:
    """One that is done at once"""
    def __init__(self, outcome):
        self.outcome = outcome

    def done(self):
        return self.outcome is not None

    def result(self, timeout):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def release(self):
        pass


class Client:
    """A cluster with as many slots as are asked for; outcomes come from a function of the request, None: not done."""
    status = "running"

    def __init__(self, outcome, slots=2, introduce=None):
        self.outcome, self.slots, self.introduce, self.sent, self.cancelled = outcome, slots, introduce, [], []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def nthreads(self):
        return {"worker": self.slots}

    def submit(self, function, task, *arguments, **options):
        if function is worker.introduce:
            return Future(self.introduce())
        self.sent.append(json.loads(task["request"])["prompt"])
        return Future(self.outcome(self.sent))

    def cancel(self, futures):
        self.cancelled += futures


class Place:
    def __init__(self, act=lambda: None):
        self.saved, self.act = [], act

    def name_of(self, entry):
        return "a.png"

    def save_file(self, content, ending, entry, record):
        self.act()
        self.saved.append(entry.request.prompt)


MADE = (b"file", ".png", {}, [])


class Clock:
    """Time that passes only while it is waited for"""
    def __init__(self):
        self.time = 0.0

    def now(self):
        return self.time

    def wait(self, seconds):
        self.time += seconds


def drive(client, prompts, place=None, said=None):
    place, clock = place or Place(), Clock()
    driver = cluster.Driver(lambda: client, [Entry(Request(prompt)) for prompt in prompts], place,
                            Notes([] if said is None else said), None, {}, (clock.now, clock.wait))
    return driver.run(), sorted(place.saved)


def test_a_picture_that_always_goes_wrong_is_given_up_and_the_others_are_made():
    client = Client(lambda sent: ValueError("bad") if sent[-1] == "bad" else MADE)
    failed, saved = drive(client, ["a", "bad", "b"])
    assert [entry.request.prompt for entry, _ in failed] == ["bad"] and saved == ["a", "b"]
    assert client.sent.count("bad") == cluster.MOST_TRIES


def test_a_picture_whose_worker_stands_still_before_it_is_fetched_is_made_again():
    client = Client(lambda sent: distributed.TimeoutError() if sent == ["a"] else MADE, slots=1)
    assert drive(client, ["a", "b"]) == ([], ["a", "b"]) and client.sent.count("a") == 2


def test_a_picture_that_workers_refuse_is_asked_of_three_and_named_with_their_reason():
    client = Client(lambda sent: UserError("too large") if sent[-1] == "bad" else MADE)
    failed, saved = drive(client, ["bad", "a", "b"])
    assert [(entry.request.prompt, why) for entry, why in failed] == [("bad", "too large")] and saved == ["a", "b"]
    assert client.sent.count("bad") == cluster.MOST_REFUSALS


def test_a_list_of_which_nothing_can_be_made_ends_with_the_first_reasons():
    client = Client(lambda sent: UserError("no such LoRA"))
    with pytest.raises(UserError, match="no such LoRA"):
        drive(client, [str(number) for number in range(1000)])
    assert len({*client.sent}) <= 2 * cluster.MOST_AT_FIRST


def test_a_straggler_is_begun_once_more_when_it_takes_longer_than_most_and_the_first_copy_counts():
    """The first picture is never done; its copy is."""
    client = Client(lambda sent: None if sent == ["slow"] else MADE, slots=2)
    failed, saved = drive(client, ["slow", "a", "b", "c"])
    assert saved == ["a", "b", "c", "slow"] and client.sent == ["slow", "a", "b", "c", "slow"] and not failed
    assert len(client.cancelled) == 1


def test_copies_keep_a_simulated_cluster_with_a_slow_machine_busy(monkeypatch):
    """The driver's own code on twenty played machines of which some are ten times slower: what copies at the end are for."""
    case = dict(workers=20, pictures=60, seconds=60, seed=1, slow=0.1)
    found = simulation.simulate(**case)
    assert found == simulation.simulate(**case) and found["begun"] > 60
    monkeypatch.setattr(cluster, "COPIES", 1)
    without = simulation.simulate(**case)
    assert without["begun"] == 60 and without["took"] > 2 * found["took"] and found["took"] < 1.25 * found["ideal"]


def test_the_ideal_of_a_simulation_is_that_of_machines_that_never_wait():
    starts, seconds = np.array([0.0, 10.0]), np.array([2.0, 1.0])
    assert simulation.ideal_of(starts, seconds, 5) == pytest.approx(10)              # five of the first one
    assert simulation.ideal_of(starts, seconds, 8) == pytest.approx(12)              # six, and two of the other


def test_a_full_disk_ends_the_run_in_one_line_and_what_is_done_stays():
    def full():
        raise UserError("a.png: the picture can't be written (No space left on device)")
    place = Place()
    with pytest.raises(UserError, match="No space left"):
        drive(Client(lambda sent: setattr(place, "act", full) or MADE if len(sent) == 3 else MADE, 1), "abcd", place)
    assert place.saved == ["a", "b"]


def test_pictures_that_are_saved_together_wait_for_the_disk_together(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    from npdiffusion.jobs.manifest import Manifest
    syncs, inside = [], os.fsync
    with Manifest(tmp_path, Listener()) as manifest:
        number = manifest.file.fileno()

        def slow(file):
            if file == number:
                syncs.append(file)
                time.sleep(0.05)
            inside(file)
        monkeypatch.setattr("os.fsync", slow)
        entries = [Entry(Request("the same", seed=1), asked={"number": number}) for number in range(16)]
        with ThreadPoolExecutor(16) as writers:
            list(writers.map(lambda entry: manifest.save_file(b"file", ".png", entry, {"seed": 1}), entries))
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert len({line["file"] for line in lines}) == 16 == len({entry.path for entry in entries})
    assert {entry.path.name: entry.asked for entry in entries} == {line["file"]: line["asked"] for line in lines}
    assert len(syncs) < 16


def test_an_address_without_a_scheduler_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "PATIENCE", 1)
    monkeypatch.chdir(tmp_path)
    table(tmp_path)
    words = ["--prompts", "prompts.csv", "-o", "out/", "--cluster"]
    assert cli.main([*words, f"tcp://127.0.0.1:{free_port()}"]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert "the scheduler can't be reached" in said[-1] and sum("error" in line for line in said) == 1
    assert cli.main([*words, "nonsense://x"]) == 1
    assert "no address of a scheduler" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), [
    (["a cat", "--cluster", "local:2"], "it is for the pictures of --prompts"),
    (["--prompts", "p.csv", "--cluster", "local:2", "--inside", "x"], "doesn't go with --inside"),
    (["--prompts", "p.csv", "--cluster", "local:2", "--preview", "linear"], "doesn't go with --preview")])
def test_what_does_not_go_with_a_cluster_is_refused(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.csv").write_text("prompt\na cat\n")
    assert cli.main(words) == 2 and said in capsys.readouterr().err


# ---- the page that says how workers are started

def page_blocks(language):
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", page_blocks("bash"))
def test_lines_for_other_machines_are_shell_and_their_commands_are_ours(block):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    for words in re.findall(r"npdiffusion (worker )?([^\n\"'&>]*)", block):
        asked = shlex.split(words[1].replace("\\\n", " ").replace("$SLURM_CPUS_PER_TASK", "16"))
        if words[0] and asked:
            assert worker_command.parse(asked).address == asked[0]


def test_the_manifests_for_kubernetes_are_what_it_takes():
    yaml, (block,) = pytest.importorskip("yaml"), page_blocks("yaml")
    service, scheduler, workers = yaml.safe_load_all(block)
    assert service["spec"]["selector"] == scheduler["spec"]["template"]["metadata"]["labels"]
    container, = workers["spec"]["template"]["spec"]["containers"]
    asked = worker_command.parse(container["command"][2:])
    assert asked.address == f"tcp://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    schemas = pytest.importorskip("kubernetes_validate")
    for each in service, scheduler, workers:
        schemas.validate(each, schemas.latest_version(), strict=True)
