from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from tests.runtime.media.clips import SCENE_HW
from tests.studio.conftest import HOST, TOKEN

API = ("state", "tracks", "frames/0/0", "masks/0", "edits", "events")
CHANGES = (
    ("PUT", "/api/masks/0"),
    ("DELETE", "/api/masks/0"),
    ("PUT", "/api/names/1"),
    ("PUT", "/api/directions/0"),
    ("POST", "/api/run"),
    ("DELETE", "/api/run"),
)


def test_valid_requests_are_served(client: TestClient) -> None:
    """Control of the refusals below: the same requests with token, Host and Origin."""
    assert client.get("/").status_code == 200
    for path in API[:-1]:  # the last one is an endless stream
        assert client.get(f"/api/{path}").status_code in (200, 204), path
    assert client.get("/api/state", headers={"origin": f"http://{HOST}"}).status_code == 200
    assert client.get("/api/state", headers={"host": "localhost:9000"}).status_code == 200


DETAILS = {
    401: "the token is missing or wrong: send the header Authorization: Bearer TOKEN",
    403: "the request is from a page of another site",
    421: "the host of the request is not this server",
}
"""All that a refused request gets."""


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": ""}, 401),
        ({"authorization": f"Bearer {TOKEN}x"}, 401),
        ({"authorization": TOKEN}, 401),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": f"https://{HOST}"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example:8000"}, 421),
        ({"host": f"user@{HOST}"}, 421),
        ({"host": ""}, 421),
    ],
)
def test_foreign_request_gets_nothing(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    """Neither the interface nor a change is reachable, even with the token."""
    for method, path in (*(("GET", f"/api/{path}") for path in API), *CHANGES):
        response = client.request(method, path, headers=headers)
        assert response.status_code == status, (method, path)
        assert response.json() == {"detail": DETAILS[status]}
        assert "set-cookie" not in response.headers
    if status != 401:  # not even the page, whose text is public
        assert client.get("/", headers=headers).status_code == status


def test_link_of_another_site_opens_the_page_only(client: TestClient) -> None:
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=followed).status_code == 200
    assert client.get("/api/state", headers=followed).status_code == 403
    embedded = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert client.get("/main.js", headers=embedded).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/run.json",
        "/corrections/00000.png",
        "/etc/passwd",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/web/index.html",
        "/app.py",
        "/docs",
        "/openapi.json",
        "/api/frames/12/0",
        "/api/frames/-1/0",
        "/api/frames/0/9",
        "/api/masks/12",
        "/api/masks/..%2f..%2frun.json",
        "/api/files/etc/passwd",
    ],
)
def test_guessed_path_gets_nothing(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code in (404, 422)
    assert b"root:" not in response.content
    assert len(response.content) < 300
    without_token = client.get(path, headers={"authorization": ""})
    assert without_token.status_code in (401, 404)


def test_methods_are_limited(client: TestClient) -> None:
    for method in ("OPTIONS", "PATCH", "TRACE", "CONNECT"):
        assert client.request(method, "/api/state").status_code == 405
    for path in ("/", "/main.js", "/api/state"):
        assert client.post(path).status_code == 405


def test_headers_forbid_foreign_content(client: TestClient) -> None:
    for path in ("/", "/main.js", "/api/state", "/nothing"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["referrer-policy"] == "no-referrer"
        assert "set-cookie" not in headers
        assert "access-control-allow-origin" not in headers


def test_page_has_no_inline_code_and_no_other_host(client: TestClient) -> None:
    page = client.get("/").text
    assert "<script>" not in page
    assert " style=" not in page
    assert " onclick" not in page
    for name in ("", "main.js", "api.js", "view.js", "studio.css"):
        text = client.get(f"/{name}").text
        assert "http://" not in text
        assert "https://" not in text


def test_large_body_is_refused(client: TestClient) -> None:
    height, width = SCENE_HW
    headers = {"if-match": "*"}
    large = bytes(2 * height * width + (1 << 20))
    assert client.put("/api/masks/0", content=large, headers=headers).status_code == 413
    chunked = client.put("/api/masks/0", content=iter([large]), headers=headers)
    assert chunked.status_code == 413
    bomb = b"\1\0\0\0\1" + b"\xff\xff\xff\xff\x0f"  # 4 GiB in 10 bytes
    assert client.put("/api/masks/0", content=bomb, headers=headers).status_code == 409
    assert client.get("/api/state").json()["drawn"] == {}
