"""Real workers that die early, stand still, or can't do what is asked; a disk that is full; ControlNets on workers."""
import csv
import signal
import subprocess

import pytest

from npdiffusion.command import cli
from tests import controlnets, pairs
from tests.clusters import check, end, pictures, scheduler, start, table
from tests.processes import free_port, until

COUNT = 6


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What a single machine makes: {name: file}"""
    folder = tmp_path_factory.mktemp("alone")
    assert cli.main(["--prompts", str(table(folder, COUNT)), "--steps", "3", "-o", f"{folder}/out/"]) == 0
    return pictures(folder / "out")


@pytest.fixture
def address():
    """Of a scheduler without workers"""
    port = free_port()
    process = scheduler(port)
    yield f"tcp://127.0.0.1:{port}"
    end([process])


def run(folder, address, rows=COUNT):
    """The process that has the list"""
    return start("--prompts", table(folder, rows), "--steps", 3, "-o", f"{folder}/out/", "--cluster", address)


def test_a_worker_that_is_killed_before_it_has_loaded_its_model_costs_nothing(alone, tmp_path, address):
    driver, early = run(tmp_path, address), start("worker", address)
    until(lambda: "loading" in early.stdout.readline())
    early.kill()
    later = start("worker", address)
    try:
        out, _ = driver.communicate(timeout=100)
        assert driver.returncode == 0, out
        check(tmp_path / "out", alone)
        assert "lost" not in out.splitlines()[-1]
    finally:
        end([early, later, driver])


def test_a_worker_that_stands_still_is_not_waited_for_and_a_picture_that_always_fails_is_named(alone, tmp_path, address):
    """A worker is stopped before it is asked, one with a picture at work; and the text encoder has no 50 layers, which only
    workers find."""
    with open(table(tmp_path, COUNT), "a") as file:
        csv.writer(file).writerow(["a dog", 99, 50])
    text = (tmp_path / "prompts.csv").read_text()
    (tmp_path / "prompts.csv").write_text(text.replace("prompt,seed", "prompt,seed,clip_skip").replace("a cat,0", "a cat,0,"))
    still = start("worker", address)
    until(lambda: "works for" in still.stdout.readline())
    still.send_signal(signal.SIGSTOP)
    workers = [start("worker", address) for _ in range(2)]
    driver = start("--prompts", tmp_path / "prompts.csv", "--steps", 3, "-o", f"{tmp_path}/out/", "--cluster", address)
    try:
        until(lambda: pictures(tmp_path / "out"))
        workers[0].send_signal(signal.SIGSTOP)
        out, _ = driver.communicate(timeout=100)
        assert driver.returncode == 1 and "'a dog', seed 99: could not be made (clip_skip is 49: of" in out, out
        assert f"{COUNT} of {COUNT + 1} pictures are made" in out
        check(tmp_path / "out", alone)
    finally:
        end([still, *workers, driver])


def test_after_a_disk_was_full_the_same_command_goes_on(alone, tmp_path, address):
    out = tmp_path / "out"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80k", "small", out], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system can't be mounted here, which takes root")
    worker = start("worker", address)
    try:
        driver = run(tmp_path, address)
        said, _ = driver.communicate(timeout=100)
        assert driver.returncode == 1 and "No space left" in said and "Traceback" not in said, said
        assert 0 < len(pictures(out)) < COUNT
        subprocess.run(["mount", "-o", "remount,size=4m", out], check=True)
        driver = run(tmp_path, address)
        said, _ = driver.communicate(timeout=100)
        assert driver.returncode == 0, said
        check(out, alone)
    finally:
        end([worker])
        subprocess.run(["umount", "-l", out], check=False)


def test_pictures_that_lead_go_with_the_list_and_workers_have_the_controlnet(tmp_path):
    place = controlnets.write_all(tmp_path, pairs.make_theirs())
    for number in 1, 2:
        controlnets.picture(number).save(place / f"{number}.png")
    (tmp_path / "list.csv").write_text("prompt,seed,control_image,control_from,control_scale\n" + "".join(
        f"a cat,{number},{place}/{number}.png,{made},{scale}\n"
        for number, made, scale in ((1, "canny", 0.8), (2, "none", 1.5))))
    command = ["--prompts", f"{tmp_path}/list.csv", "-m", f"{place}/model", "--control", f"{place}/led/v11_canny",
               "--steps", "3", "-W", "48", "-H", "32", "-o"]
    assert cli.main([*command, f"{tmp_path}/alone/"]) == 0
    many = start(*command, f"{tmp_path}/many/", "--cluster", "local:1")
    out, _ = many.communicate(timeout=200)
    assert many.returncode == 0, out
    assert len(pictures(tmp_path / "alone")) == 2 and pictures(tmp_path / "many") == pictures(tmp_path / "alone")
