from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipeline.config.errors import ConfigError
from pipeline.data.images import decode
from pipeline.models.captioner import Captioner
from pipeline.runtime.memory_budget import MemoryBudget
from pipeline.serving import service
from tests.conftest import jpeg
from tests.serving.conftest import FakeChallenger, FakeRegistry, Start


def post(client: TestClient, pictures: Sequence[bytes], **options: Any) -> Any:
    files = [("files", ("picture.jpg", data)) for data in pictures]
    return client.post("/v1/captions", files=files, data={key: str(value) for key, value in options.items()})


def captions(answer: Any) -> list[list[str]]:
    assert answer.status_code == 200, answer.text
    return [result["captions"] for result in answer.json()["results"]]


def same(captioner: Captioner, data: bytes) -> Image.Image:
    """The picture as the service decodes it."""
    return service.picture(data, captioner.image_size, MemoryBudget(10**9))


def test_a_caption_is_the_captioners_own_with_its_score(
    start: Start, captioner: Captioner, pictures: list[bytes]
) -> None:
    answer = post(start(), pictures[:2])
    expected = captioner.caption([same(captioner, data) for data in pictures[:2]], beams=2)
    assert captions(answer) == [[caption] for caption in expected]
    assert answer.json()["model"] == {"name": "toy", "version": 1}
    assert all(-5 < result["scores"][0] < 0 for result in answer.json()["results"])


def test_json_answers_as_the_form_does(start: Start, pictures: list[bytes]) -> None:
    client = start()
    encoded = base64.b64encode(pictures[6]).decode()
    sent = {"pictures": [encoded, f"data:image/jpeg;base64,{encoded}"], "n": 3, "beams": None, "sampling": False}
    answer = client.post("/v1/captions", json=sent)
    assert captions(answer) == captions(post(client, [pictures[6]] * 2, n=3))
    assert len(captions(answer)[0]) == 3


def test_an_answer_does_not_depend_on_its_neighbours(start: Start, pictures: list[bytes]) -> None:
    client = start(max_wait_ms=200.0)
    for options in ({}, {"n": 4, "seed": 7}, {"n": 3, "sampling": True, "seed": 7}):
        alone = [captions(post(client, [data], **options))[0] for data in pictures]
        assert captions(post(client, pictures, **options)) == alone
        with ThreadPoolExecutor(8) as threads:
            together = list(threads.map(lambda data, o=options: captions(post(client, [data], **o))[0], pictures))
        assert together == alone
    assert 'captions_batch_pictures_bucket{le="4.0"}' in client.get("/metrics").text


def test_concurrent_requests_share_forward_passes(start: Start, pictures: list[bytes]) -> None:
    client = start(max_wait_ms=500.0)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda data: captions(post(client, [data])), pictures))
    count = float(client.get("/metrics").text.split("captions_batch_pictures_count ")[1].split()[0])
    assert count < 8


def test_sampling_depends_on_the_seed_only_and_equals_several(
    start: Start, captioner: Captioner, pictures: list[bytes]
) -> None:
    client = start()
    first, again, other = (captions(post(client, pictures[6:7], n=4, sampling=True, seed=s))[0] for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert first == captioner.several([same(captioner, pictures[6])], 4, seed=1)[0]


def test_several_captions_are_different_and_begin_with_the_likeliest(start: Start, pictures: list[bytes]) -> None:
    client = start()
    (best,) = captions(post(client, pictures[6:7]))
    (several,) = captions(post(client, pictures[6:7], n=5, seed=3))
    assert several[0] == best[0]
    assert len(set(several)) == len(several) > 1


def test_bad_pictures_spoil_only_themselves(start: Start, pictures: list[bytes]) -> None:
    bomb = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(bomb, "PNG")
    bad = [b"", b"no picture", pictures[0][:500], bomb.getvalue(), jpeg(size=(2000, 10))]
    client = start()
    mixed = [bad[0], pictures[0], bad[1], bad[2], pictures[1], bad[3], bad[4]]
    answer = post(client, mixed)
    results = answer.json()["results"]
    assert [results[k] for k in (1, 4)] == post(client, pictures[:2]).json()["results"]
    for k in (0, 2, 3, 5, 6):
        assert list(results[k]) == ["error"]
        assert "\n" not in results[k]["error"]


@pytest.mark.parametrize("text", ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/x.jpg", "data:image/png,abc"])
def test_paths_and_urls_are_never_read(start: Start, text: str) -> None:
    answer = start().post("/v1/captions", json={"pictures": [text]})
    assert answer.status_code == 200
    assert "base64" in answer.json()["results"][0]["error"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n: "),
        ({"n": 17}, "n: "),
        ({"n": "many"}, "n: "),
        ({"beams": 0}, "beams: "),
        ({"beams": 9}, "beams: "),
        ({"seed": -1}, "seed: "),
        ({"sampling": "perhaps"}, "sampling: "),
        ({"beam": 3}, "beam: "),
    ],
)
def test_wrong_options_are_one_line_and_422(
    start: Start, pictures: list[bytes], options: dict[str, Any], message: str
) -> None:
    client = start()
    sent = {"pictures": [base64.b64encode(pictures[0]).decode()]} | options
    for answer in (
        post(client, pictures[:1], **options),
        client.post("/v1/captions", json=sent),
    ):
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith(message)
        assert "\n" not in answer.json()["detail"]


def test_a_wrong_number_of_pictures_or_kind_of_body_is_refused(start: Start, pictures: list[bytes]) -> None:
    client = start()
    assert client.post("/v1/captions", json={"pictures": []}).status_code == 422
    assert client.post("/v1/captions", json={"pictures": ["x"] * 65}).status_code == 422
    assert client.post("/v1/captions", data={"n": "1"}, files=[("other", b"x")]).status_code == 422
    assert post(client, [b"x"] * 65).status_code == 400
    assert client.post("/v1/captions", content=pictures[0]).status_code == 415
    assert client.post("/v1/captions", content=b"{", headers={"content-type": "application/json"}).status_code == 422
    broken = client.post("/v1/captions", content=b"x", headers={"content-type": "multipart/form-data; boundary=b"})
    assert broken.status_code in (400, 422)


def test_too_large_requests_get_413(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.Bodies.__init__, "__defaults__", (100_000, 1_000_000))
    client = start()
    assert post(client, [bytes(200_000)]).status_code == 413
    unstated = client.post(
        "/v1/captions", content=iter([bytes(60_000)] * 3), headers={"content-type": "application/json"}
    )
    assert unstated.status_code == 413
    assert post(client, [jpeg()]).status_code == 200


def test_too_many_bytes_at_once_get_429_until_they_are_answered(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.Bodies.__init__, "__defaults__", (100_000, 50_000))
    client = start()
    refused = post(client, [bytes(80_000)])
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert post(client, [jpeg()]).status_code == 200


def test_a_full_queue_gets_429_with_retry_after(
    start: Start, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start(max_queue=64)
    prepared = service._prepared

    def slow(*arguments: Any) -> Any:
        time.sleep(1)
        return prepared(*arguments)

    monkeypatch.setattr(service, "_prepared", slow)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(post, client, pictures[:1])
        time.sleep(0.3)
        refused = post(client, [pictures[0]] * 64)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert captions(first.result())


def test_a_request_that_takes_too_long_gets_504_and_the_next_one_an_answer(
    start: Start, pictures: list[bytes], captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start(timeout_seconds=0.5)
    scored = captioner.scored

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(1)
        return scored(*arguments, **options)

    monkeypatch.setattr(captioner, "scored", slow)
    assert post(client, pictures[:1]).status_code == 504
    monkeypatch.undo()
    time.sleep(1)
    assert captions(post(client, pictures[:1]))


def test_before_a_model_is_loaded_it_lives_but_is_not_ready(start: Start, registry: FakeRegistry) -> None:
    registry.version = None
    client = start()
    assert client.get("/healthz").status_code == 200
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert "has no version in MLflow" in ready.json()["reason"]
    for answer in (client.get("/v1/model"), post(client, [jpeg()])):
        assert answer.status_code == 503
        assert "has no version in MLflow" in answer.json()["detail"]
        assert "Retry-After" in answer.headers
    registry.version = 3
    deadline = time.monotonic() + 20
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.get("/v1/model").json()["version"] == 3


def test_the_alias_is_followed_without_a_failed_request(
    start: Start, registry: FakeRegistry, pictures: list[bytes]
) -> None:
    client = start()
    assert client.get("/v1/model").json() == {
        "name": "toy",
        "version": 1,
        "alias": "champion",
        "aliases": ["champion"],
        "tags": {"git_commit": "abc"},
        "source": "models:/toy/1",
    }
    spoke: list[int] = []

    def ask(_: int) -> None:
        answer = post(client, pictures[:1])
        assert answer.status_code == 200
        spoke.append(answer.json()["model"]["version"])

    with ThreadPoolExecutor(4) as threads:
        first = list(threads.map(ask, range(12)))
        registry.version = 2
        deadline = time.monotonic() + 30
        while spoke[-1] != 2:
            assert time.monotonic() < deadline
            first += list(threads.map(ask, range(4)))
    assert set(spoke) == {1, 2}
    assert client.get("/v1/model").json()["version"] == 2


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(
    start: Start, registry: FakeRegistry, pictures: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    client = start()
    registry.failure, registry.version = ConfigError("models:/toy/2: has no usable checkpoint"), 2
    time.sleep(0.5)
    assert post(client, pictures[:1]).json()["model"]["version"] == 1
    assert client.get("/readyz").status_code == 200
    printed = capsys.readouterr().out
    assert printed.count("models:/toy/2: has no usable checkpoint; still serving models:/toy/1") == 1


def test_the_token_is_asked_of_every_route_but_health(start: Start, pictures: list[bytes]) -> None:
    client = start(token="secret word")
    routes = [("GET", path) for path in ("/v1/model", "/metrics", "/docs", "/openapi.json", "/nowhere")]
    for method, path in [*routes, ("POST", "/v1/captions")]:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret word"}):
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 401, path
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    for path in ("/healthz", "/readyz"):
        assert client.get(path).status_code == 200
    client.headers["Authorization"] = "Bearer secret word"
    assert client.get("/v1/model", headers={"Host": "captions.example.org"}).status_code == 200
    assert captions(post(client, pictures[:1]))


@pytest.mark.parametrize(
    ("host", "status"),
    [("evil.example", 421), ("127.0.0.1.evil.example", 421), ("", 421), ("localhost:8600", 200), ("[::1]:8600", 200)],
)
def test_without_a_token_the_host_header_must_name_this_machine(start: Start, host: str, status: int) -> None:
    assert start().get("/v1/model", headers={"Host": host}).status_code == status


def test_the_docs_load_nothing_from_elsewhere(start: Start) -> None:
    client = start()
    page = client.get("/docs")
    assert page.status_code == 200
    assert "src=" not in page.text
    assert "<script" not in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    for path in ("/v1/captions", "/v1/model", "/healthz", "/readyz", "/metrics"):
        assert path in page.text
        assert path in client.get("/openapi.json").json()["paths"]
    assert client.get("/redoc").status_code == 404


def test_metrics_count_requests_pictures_and_the_served_version(start: Start, pictures: list[bytes]) -> None:
    client = start()
    post(client, [pictures[0], b"no picture"])
    post(client, [pictures[0]], n=0)
    text = client.get("/metrics").text
    assert 'captions_requests_total{status="200"} 1.0' in text
    assert 'captions_requests_total{status="422"} 1.0' in text
    assert 'captions_pictures_total{outcome="captioned"} 1.0' in text
    assert 'captions_pictures_total{outcome="refused"} 1.0' in text
    assert "captions_queue_pictures 0.0" in text


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_a_client_that_goes_away_while_it_sends_is_no_error(start: Start, kind: str) -> None:
    client = start()
    messages = iter([{"type": "http.request", "body": b"--x", "more_body": True}, {"type": "http.disconnect"}])
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/captions",
        "raw_path": b"/v1/captions",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", kind.encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8600),
    }

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        """Nobody reads it."""

    asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    assert 'captions_requests_total{status="499"} 1.0' in client.get("/metrics").text


def test_the_decoder_is_the_projects_own(pictures: list[bytes], captioner: Captioner) -> None:
    assert same(captioner, pictures[0]).tobytes() == decode(pictures[0], 10**9).tobytes()


def test_a_challenger_is_loaded_at_the_first_request_for_it_and_captions_beside_the_champion(
    start: Start, challenger: FakeChallenger, pictures: list[bytes]
) -> None:
    client = start()
    files = [("files", ("a", pictures[0], "image/jpeg"))]
    first = client.post("/v1/captions", files=files, data={"challenger": "true"})
    assert first.status_code in (200, 503), "503 while it is loaded"
    end = time.monotonic() + 60
    while client.get("/v1/model?challenger=true").status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert client.get("/v1/model?challenger=true").json()["version"] == 2
    assert client.get("/v1/model").json()["version"] == 1
    both = [client.post("/v1/captions", files=files, data=data).json() for data in ({"challenger": "true"}, {})]
    assert [answer["model"]["version"] for answer in both] == [2, 1]
    assert both[0]["results"] == both[1]["results"], "both have the same weights here"

    challenger.version = 1
    while (answer := client.get("/v1/model?challenger=true")).status_code == 200:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert "has just become champion" in answer.json()["detail"]
    challenger.version = None
    while "no challenger" not in client.get("/v1/model?challenger=true").json()["detail"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert client.post("/v1/captions", files=files, data={"challenger": "true"}).status_code == 503
    assert client.get("/readyz").status_code == 200
