"""/v1, asked by OpenAI's own package."""
import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from npdiffusion.server import slow_answers


@pytest.fixture
def client(real):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", timeout=60) as found:
        yield found


def picture(each):
    return Image.open(io.BytesIO(base64.b64decode(each.b64_json)))


def file_of(image, name="a.png"):
    content = io.BytesIO()
    image.save(content, "PNG")
    return name, content.getvalue(), "image/png"


def test_its_package_makes_pictures(client):
    found = client.images.generate(prompt="a red apple", n=2, size="64x72", output_format="webp",
                                   extra_body={"seed": 3, "steps": 2, "negative_prompt": "blue"})
    assert [(picture(each).size, picture(each).format) for each in found.data] == [((64, 72), "WEBP")] * 2
    assert found.model_extra["seeds"] == [3, 4] and found.size == "64x72"


def test_its_picture_is_the_one_of_the_same_settings_elsewhere(client, real):
    found = client.images.generate(prompt="a red apple", extra_body={"seed": 3, "steps": 2})
    job = real.finished(real.post("/api/jobs", {"prompt": "a red apple", "seed": 3, "steps": 2}))
    other = Image.open(io.BytesIO(real.get(f"/api/pictures/{job['pictures'][0]}.png")))
    assert np.array_equal(picture(found.data[0]), other)
    assert picture(found.data[0]).text["parameters"] == other.text["parameters"]


def test_a_stream_brings_partial_pictures_and_the_whole_one(client):
    events = list(client.images.generate(prompt="a cat", size="auto", stream=True, partial_images=2,
                                         extra_body={"steps": 40, "seed": 1}))
    kinds = [event.type.partition(".")[2] for event in events]
    assert kinds[-1] == "completed" and set(kinds[:-1]) == {"partial_image"} and 1 <= len(kinds) - 1 <= 2
    assert [event.partial_image_index for event in events[:-1]] == list(range(len(events) - 1))
    assert {picture(event).size for event in events} == {(128, 128)}


def test_an_edit_paints_what_is_transparent_in_the_mask(client):
    image = Image.radial_gradient("L").resize((128, 128)).convert("RGB")
    mask = Image.new("RGBA", (128, 128), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 64, 128))
    found = client.images.edit(prompt="a cat", image=file_of(image), mask=file_of(mask), extra_body={"steps": "3", "seed": "1"})
    made, before = (np.asarray(each, np.int16) for each in (picture(found.data[0]), image))
    assert np.array_equal(made[:, 80:], before[:, 80:]) and np.abs(made[:, :48] - before[:, :48]).mean() > 5
    whole = client.images.edit(prompt="a cat", image=[file_of(image)],
                               extra_body={"steps": "3", "seed": "1", "strength": "0.4"})
    assert not np.array_equal(np.asarray(picture(whole.data[0]))[:, 80:], before[:, 80:])


def test_what_is_transparent_in_the_picture_is_painted_without_a_mask(client):
    image = Image.radial_gradient("L").resize((128, 128)).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 64, 128))
    found = client.images.edit(prompt="a cat", image=file_of(image), extra_body={"steps": "2", "seed": "1"})
    assert np.array_equal(np.asarray(picture(found.data[0]))[:, 80:], np.asarray(image.convert("RGB"))[:, 80:])


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["embedded"] and client.models.retrieve("embedded").id == "embedded"


def test_an_error_is_told_as_there(client):
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="x", model="dall-e-3")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="up to 8192|up to 2048|multiple of"):
        client.images.generate(prompt="x", size="100x100")


def test_what_has_no_effect_is_noted_and_what_was_chosen_is_in_the_answer(fake):
    answer = fake.post("/v1/images/generations", {
        "prompt": "x", "quality": "hd", "style": "vivid", "moderation": "low", "seed": 9})
    assert sorted(answer["notes"]) == ["quality has no effect here", "style has no effect here"] and answer["seeds"] == [9]


@pytest.mark.parametrize(("found", "status", "param"), [
    ({}, 400, "prompt"),
    ({"prompt": "x", "n": 11}, 400, "n"),
    ({"prompt": "x", "n": "2"}, 400, "n"),
    ({"prompt": "x", "size": "big"}, 400, "size"),
    ({"prompt": "x", "response_format": "url"}, 400, "response_format"),
    ({"prompt": "x", "output_format": "gif"}, 400, "output_format"),
    ({"prompt": "x", "background": "transparent"}, 400, "background"),
    ({"prompt": "x", "colour": "red"}, 400, "colour"),
    ({"prompt": "x", "steps": 5000}, 400, None),
    ({"prompt": "x", "size": "4096x64"}, 413, None),
    ({"prompt": "x", "image": "/etc/passwd"}, 400, "image"),
    ({"prompt": "x", "init_image": "/etc/passwd"}, 400, None),
])
def test_what_is_not_offered_is_refused_by_name(fake, found, status, param):
    code, _, answer = fake.call("POST", "/v1/images/generations", found)
    assert (code, answer["error"]["param"]) == (status, param) and not fake.pipeline.asked


def test_half_a_form_is_an_error(fake):
    kind = "multipart/form-data; boundary=b"
    for body in ("", "--b\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\nx", "nonsense"):
        assert fake.call("POST", "/v1/images/edits", body=body, content_type=kind)[0] == 400
    bad = ("--b\r\nContent-Disposition: form-data; name=\"image\"; filename=\"../../x.png\"\r\n\r\nnothing\r\n"
           "--b\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\nx\r\n--b--\r\n")
    status, _, answer = fake.call("POST", "/v1/images/edits", body=bad, content_type=kind)
    assert status == 400 and "image: damaged" in answer["error"]["message"]


def test_an_error_after_a_long_while_is_in_the_body(fake, monkeypatch):
    import time
    monkeypatch.setattr(slow_answers, "PATIENCE", 0.05)

    def fail():
        time.sleep(0.3)
        raise ValueError("/home/me")
    fake.pipeline.act = fail
    status, _, answer = fake.call("POST", "/v1/images/generations", {"prompt": "x", "steps": 1})
    assert status == 200 and answer["error"]["type"] == "server_error" and "/home" not in json.dumps(answer)
