"""`:classify` of a real server, with an image or a form of files as the body."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from support import HANG_S, RunningServer, picture

CLASSIFY = "/v1/models/tiny:classify"
LEFT = picture("left")


@pytest.fixture(scope="module")
def http(tiny_server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{tiny_server.http_port}", timeout=HANG_S) as client:
        yield client


def form(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("image", (f"{index}.png", image)) for index, image in enumerate(images)]


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", None])
@pytest.mark.parametrize("path", [CLASSIFY, "/v1/models/tiny/versions/1:classify", "/v1/models/%74iny%3Aclassify"])
def test_an_image_as_the_body(http: httpx.Client, path: str, kind: str | None) -> None:
    response = http.post(path, content=LEFT, headers={} if kind is None else {"Content-Type": kind})
    assert response.status_code == 200
    answer = response.json()
    assert (answer["model"], answer["version"]) == ("tiny", "1")
    (result,) = answer["results"]
    assert [item["label"] for item in result["classes"]] == ["left", "dark", "bright"]
    assert [item["index"] for item in result["classes"]] == [1, 0, 2]
    assert sum(item["probability"] for item in result["classes"]) == pytest.approx(1, abs=1e-3)
    assert answer["timings"]["total_us"] > 0


def test_a_form_of_files_answers_in_order_and_a_bad_one_fails_alone(http: httpx.Client) -> None:
    files = form(LEFT, b"no image", picture("bright"))
    response = http.post(CLASSIFY, files=files, params={"top_k": 1})
    assert response.status_code == 200
    left, bad, bright = response.json()["results"]
    assert [item["label"] for item in left["classes"] + bright["classes"]] == ["left", "bright"]
    assert "are not an image" in bad["error"]


@pytest.mark.parametrize("arguments", [{"content": b"no image"}, {"files": form(b"no image")}, {"content": b""}])
def test_an_only_image_that_is_bad_is_a_bad_request(http: httpx.Client, arguments: dict[str, Any]) -> None:
    response = http.post(CLASSIFY, **arguments)
    assert response.status_code == 400
    assert set(response.json()) == {"error"}


def test_errors_of_images_have_no_address_of_an_object(http: httpx.Client) -> None:
    cut = LEFT[:39]
    wrong = b"\xff\xd8\xff\xa0" + b"\0" * 60
    for image in (cut, wrong, LEFT.replace(b"IHDR\0", b"IHDR\xff")):
        error = http.post(CLASSIFY, content=image).json()["error"]
        assert not re.search(r"0x[0-9a-f]|<|object|\.py|/", error), error


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("/v1/models/nobody:classify", 404, "model 'nobody' is not in the model repository"),
        ("/v1/models/n%C3%B6:classify", 404, "model 'nö'"),
        ("/v1/models/tiny/versions/stable:classify", 404, "stable"),
        ("/v1/models/altered:classify", 503, "labels.txt"),
        ("/v1/models/plain:classify", 501, "has no manifest"),
        (f"{CLASSIFY}?top_k=-1", 400, "top_k is '-1'"),
        (f"{CLASSIFY}?top_k=", 400, "top_k is ''"),
        (f"{CLASSIFY}?top_k=9999999999", 400, "top_k is '9999999999'"),
    ],
)
def test_refused_requests(http: httpx.Client, path: str, code: int, said: str) -> None:
    response = http.post(path, content=LEFT)
    assert said in response.json()["error"]
    assert response.status_code == code


@pytest.mark.parametrize(
    ("content", "kind", "code", "said"),
    [
        (b"{}", "text/html", 415, "'text/html' is not supported"),
        (b"", "multipart/form-data", 400, "Missing boundary"),
        (b"", "multipart/form-data; boundary=x", 400, "ends before its last boundary"),
        (b"--y\r\n\r\n--y--", "multipart/form-data; boundary=x", 400, "the form"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 400, "has no images"),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\ndata',
            "multipart/form-data; boundary=x",
            400,
            "ends before its last boundary",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\ntext\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            400,
            "the field 'a' of the form is no file; send each image as a file, such as -F image=@FILE",
        ),
        (b"--x\r\n\r\ntext\r\n--x--\r\n", "multipart/form-data; boundary=x", 400, '"name" must be provided'),
    ],
)
def test_bad_forms(http: httpx.Client, content: bytes, kind: str, code: int, said: str) -> None:
    response = http.post(CLASSIFY, content=content, headers={"Content-Type": kind})
    assert said in response.json()["error"]
    assert response.status_code == code


@pytest.mark.parametrize(
    ("count", "said"), [(9, "has 9 images, model 'tiny' takes at most 8"), (1025, "Too many files")]
)
def test_too_many_files(http: httpx.Client, count: int, said: str) -> None:
    response = http.post(CLASSIFY, files=form(*[b"x"] * count))
    assert response.status_code == 400
    assert said in response.json()["error"]
