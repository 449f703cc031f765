"""Who may ask the server, and what no request can make it do: each threat of docs/server-security.md."""
import base64
import io
import json
import pathlib
import re
import socket
import struct
import sys
import threading
import zlib

import pytest
from PIL import Image

from npdiffusion.command import serve as command
from npdiffusion.server import limits
from npdiffusion.server.guard import Guard
from npdiffusion.server.reading import without_paths
from tests.fake_pipeline import FakePipeline
from tests.served import served

ROOT = pathlib.Path(__file__).resolve().parent.parent
WATCHED, SEEN = threading.Event(), []


def watch(event, arguments):
    """Remember what is opened and connected to, while WATCHED is set."""
    if WATCHED.is_set() and event in ("open", "socket.connect", "os.listdir", "os.scandir"):
        SEEN.append((event, str(arguments)))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder, loras = (tmp_path_factory.mktemp(name) for name in ("server", "loras"))
    with served(folder / "pictures", FakePipeline(), lora_dir=str(loras)) as found:
        yield found


# ---- who may ask

def test_a_name_that_was_bound_anew_to_this_machine_is_refused(server):
    """DNS rebinding: the page of another site asks under its own name."""
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", "localhost.evil.example", ""):
        assert server.call("GET", "/api/info", Host=host)[0] == 400, host
    for host in ("127.0.0.1", f"localhost:{server.port}", "[::1]:7860", "LOCALHOST"):
        assert server.call("GET", "/api/info", Host=host)[0] == 200, host


@pytest.mark.parametrize("headers", [
    {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"}, {"Origin": "http://127.0.0.1.evil.example"}])
def test_pages_of_others_can_neither_post_nor_read(server, headers):
    for method, path in (("POST", "/sdapi/v1/interrupt"), ("POST", "/api/jobs"), ("GET", "/api/pictures"),
                         ("POST", "/v1/images/edits")):
        status, found, _ = server.call(method, path, **headers)
        assert status == 403 and not [name for name in found if name.lower().startswith("access-control")]


def test_a_link_from_another_page_opens_ours_and_nothing_else(server):
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert server.call("GET", "/", **link)[0] == 200 and server.call("GET", "/api/jobs", **link)[0] == 403
    own = {"Sec_Fetch_Site": "same-origin", "Origin": server.url}
    assert server.call("POST", "/sdapi/v1/interrupt", **own)[0] == 200


def test_a_form_of_another_page_is_no_json(server):
    body = json.dumps({"prompt": "x"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert server.call("POST", "/api/jobs", body=body, content_type=kind)[0] == 400


def test_with_a_key_nothing_is_told_without_it(tmp_path):
    basic = "Basic " + base64.b64encode(b"anyone:secret").decode()
    with served(tmp_path / "pictures", FakePipeline(), key="secret") as found:
        for path in ("/", "/api/info", "/v1/models", "/sdapi/v1/options", "/openapi.json", "/nowhere"):
            for authorization in (None, "Bearer wrong", "Bearer", "Basic ???", "secret", "Bearer secrets"):
                more = {} if authorization is None else {"Authorization": authorization}
                status, headers, _ = found.call("GET", path, **more)
                assert status == 401 and headers["www-authenticate"].startswith("Basic")
            if path != "/nowhere":
                assert {found.call("GET", path, Authorization=each)[0] for each in ("Bearer secret", basic)} == {200}


def test_beyond_this_machine_there_is_always_a_key(monkeypatch):
    monkeypatch.delenv(command.KEY, raising=False)
    assert command.find_key(command.parse([])) is None
    keys = {command.find_key(command.parse(["--host", host])) for host in ("0.0.0.0", "::", "192.168.1.5")}
    assert len(keys) == 3 and all(len(key) >= 20 for key in keys)
    assert command.find_key(command.parse(["--api-key", "mine"])) == "mine" and command.find_key(command.parse(["--api-key"]))
    monkeypatch.setenv(command.KEY, "theirs")
    assert {command.find_key(command.parse(words)) for words in ([], ["--host", "0.0.0.0"], ["--api-key"])} == {"theirs"}


def test_where_all_addresses_are_listened_at_addresses_are_names_and_others_are_not():
    guard = Guard(None, "0.0.0.0", ["studio.local"])
    assert all(map(guard.ours, ("192.168.1.5:7860", "[fe80::1]:7860", "studio.local", "localhost")))
    assert not any(map(guard.ours, ("evil.example", "192.168.1.5.evil.example", "", "[evil")))


# ---- how much

def test_bodies_are_bounded_whether_they_say_their_length_or_not(server, monkeypatch):
    assert server.call("POST", "/api/jobs", body=b"x", content_length=str(limits.LARGEST_BODY + 1))[0] == 413
    assert server.call("POST", "/api/jobs", body=b"x", content_length="-5")[0] in (400, 413)
    monkeypatch.setattr(limits, "LARGEST_BODY", 100_000)
    for path, kind in (("/api/jobs", "application/json"), ("/api/settings", "image/png"),
                       ("/v1/images/edits", "multipart/form-data; boundary=b")):
        try:
            status, *_ = server.call("POST", path, body=(bytes(10_000) for _ in range(20)), content_type=kind,
                                     transfer_encoding="chunked")
        except (BrokenPipeError, ConnectionResetError):  # it has heard enough
            status = 413
        assert status in (400, 413), path


def test_half_a_body_costs_nothing_but_its_own_connection(server, monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 1)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        slow.sendall(b"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                     b"Content-Length: 50\r\n\r\n{")
        assert server.call("GET", "/api/info")[0] == 200
        slow.settimeout(30)
        assert b" 413 " in slow.recv(1000)


def test_two_hundred_connections_that_say_nothing_stop_nobody(server):
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    try:
        for connection in idle:
            connection.sendall(b"GET / HTTP/1.1\r\nHost:")
        assert server.finished(server.post("/api/jobs", {"prompt": "x", "steps": 1}))["state"] == "done"
    finally:
        for connection in idle:
            connection.close()


def bomb():
    """A PNG of 30,000 × 30,000 pixels in a few bytes"""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def eps():
    """A picture in a language that Ghostscript would run"""
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EOF\n"


@pytest.mark.parametrize("content", [bomb(), eps(), b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(100), b"<svg/>", bytes(2000)])
def test_hostile_pictures_are_refused(server, content):
    text = base64.b64encode(content).decode()
    assert server.call("POST", "/api/jobs", {"prompt": "x", "init_image": text})[0] == 400
    assert server.call("POST", "/sdapi/v1/img2img", {"prompt": "x", "init_images": [text]})[0] == 400
    assert server.call("POST", "/api/settings", body=content)[0] == 400


def test_a_text_in_a_picture_that_inflates_without_end_is_not_read(server):
    from PIL.PngImagePlugin import PngInfo
    info, file = PngInfo(), io.BytesIO()
    info.add_text("parameters", "x" * (3 << 20), zip=True)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    assert server.call("POST", "/api/settings", body=file.getvalue())[0] == 400


# ---- what no request does

HOSTILE = [
    "/etc/passwd", "../../../etc/hostile", "file:///etc/hostile", "http://127.0.0.1:9/hostile", "\0hostile", "hostile/../x",
    "C:\\hostile.png", "//hostile/share", "~/hostile", "hostile" * 50, "%2e%2e%2fhostile", "{hostile}", "$(hostile)",
    "data:image/png;base64,hostile!", "file:hostile", ["hostile"], {"png": "hostile"}, {"path": "/hostile"}]


@pytest.mark.filterwarnings("ignore")
def test_no_text_of_a_request_opens_a_file_or_a_connection(server):
    """Every field that may name something, with paths, addresses and worse in it."""
    sys.addaudithook(watch)
    names = ["init_image", "mask_image", "model", "prompt", "outpaint", "vae"]
    SEEN.clear()
    WATCHED.set()
    try:
        for text in HOSTILE:
            for name in names:
                server.call("POST", "/api/jobs", {"prompt": "x", "steps": 1, name: text})
            server.call("POST", "/api/jobs", {"prompt": f"<lora:{text}:1> <lyco:{text}> __{text}__"})
            server.call("POST", "/v1/images/generations", {"prompt": "x", "image": text})
            server.call("POST", "/v1/images/generations", {"prompt": "x", "model": text, "user": text})
            for fields in (
                    {"init_images": [text]}, {"init_images": [text], "mask": text}, {"hr_upscaler": text, "enable_hr": True},
                    {"override_settings": {"sd_model_checkpoint": text}}, {"override_settings": {"sd_vae": text}},
                    {"script_name": text}, {"infotext": text}, {"firstpass_image": text}, {"refiner_checkpoint": text}):
                server.call("POST", f"/sdapi/v1/{'img' if 'init_images' in fields else 'txt'}2img", fields)
            server.call("POST", "/sdapi/v1/options", {"sd_model_checkpoint": text, "outdir_samples": text})
            server.call("POST", "/sdapi/v1/png-info", {"image": text})
            server.call("POST", "/api/tokens", {"prompt": str(text)})
            plain = re.sub(r"[^\w./%~-]", "", str(text))
            for path in (f"/api/jobs/{plain}", f"/api/pictures/{plain}.png", f"/v1/models/{plain}", f"/{plain}",
                         "/api/pictures/..%2f..%2fetc%2fhostile"):
                server.call("GET", path)
    finally:
        WATCHED.clear()
    assert SEEN, "nothing was watched"
    assert [each for each in SEEN if "hostile" in each[1] or "passwd" in each[1]] == []
    assert [each for each in SEEN if each[0] == "socket.connect" and str(server.port) not in each[1]] == []


def test_answers_tell_neither_folders_nor_tracebacks(server, monkeypatch):
    def fail(*arguments):
        raise RuntimeError(f"{server.folder}/x")
    monkeypatch.setattr(server.engine.gallery, "latest", fail)
    status, _, answer = server.call("GET", "/api/pictures")
    assert status == 500 and answer == {"error": "a mistake in npdiffusion; its log has more"}
    _, _, answer = server.call("POST", "/api/jobs", {"prompt": "<lora:nothing>"})
    assert "there is no adapter 'nothing'" in answer["error"] and "/" not in answer["error"]


@pytest.mark.parametrize(("text", "left"), [
    ("/home/me/loras/ink.safetensors: damaged", "ink.safetensors: damaged"), ("a 1/2 and <lora:a/b>", "a 1/2 and <lora:a/b>"),
    ("C:\\models\\a b.png: x", "a b.png: x"), ("'/srv/x/y' is no folder", "'y' is no folder"), ("~/models/x: no", "x: no")])
def test_paths_are_taken_out_of_messages(text, left):
    assert without_paths(text) == left


def test_every_answer_says_that_nothing_is_loaded_guessed_or_framed(server):
    for path in ("/", "/api/info", "/nowhere", "/v1/models", "/api/jobs/none"):
        _, headers, _ = server.call("GET", path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    refused = server.call("GET", "/", Host="evil.example")[1]
    assert refused["x-content-type-options"] == "nosniff" and "server" not in refused


def test_nothing_is_said_of_prompts_in_the_log(server, caplog):
    with caplog.at_level("INFO", logger="npdiffusion.server"):
        server.finished(server.post("/api/jobs", {"prompt": "something private", "steps": 1}))
    assert "POST /api/jobs 202" in caplog.text and "private" not in caplog.text


def test_many_at_once_end_in_refusals_not_in_a_queue_without_end(tmp_path, monkeypatch):
    from npdiffusion.server import queue
    monkeypatch.setattr(queue, "MOST_WAITING", 5)
    pipeline, go = FakePipeline(), threading.Event()
    pipeline.act = lambda: go.wait(20)
    with served(tmp_path / "pictures", pipeline) as found:
        statuses = [found.call("POST", "/api/jobs", {"prompt": "x", "steps": 1}, x_client=str(each))[0] for each in range(8)]
        assert statuses == [202] * 5 + [503] * 3
        go.set()


def test_the_page_on_security_names_tests_that_exist():
    text = (ROOT / "docs" / "server-security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)`", text)
    here = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_server*.py"))
    assert len(named) > 15 and [name for name in named if f"def {name}(" not in here] == []
