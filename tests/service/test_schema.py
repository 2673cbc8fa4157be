"""Requests that schemathesis generates from the OpenAPI document get no 5xx."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import integers

from tests.runtime.media.clips import scene
from tests.service.servers import TOKEN, RunningServer, png

OPERATIONS = 19
EXAMPLES = 60
"""Of each operation."""


def _schema(server: RunningServer) -> dict:
    document = server.client.get("/openapi.json")
    assert document.status_code == 200
    return document.json()


def test_document_describes_every_operation(server: RunningServer) -> None:
    document = _schema(server)
    assert document["info"]["title"] == "mpn serve"
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert len(operations) == OPERATIONS
    for name, operation in operations.items():
        assert len(operation["description"]) > 20, name
        assert operation["tags"], name
        if "/v1/" in name:
            assert {"401", "422"} <= set(operation["responses"]), name
        for status in ("429", "503"):
            if status in operation["responses"] and "readyz" not in name:
                assert "Retry-After" in operation["responses"][status]["headers"], name
        if name.startswith("PUT"):
            assert operation["requestBody"]["required"], name


@pytest.mark.api
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_generated_requests_get_no_server_error(server: RunningServer, mode: str) -> None:
    """Half of the requests have the id of a session that exists."""
    schemathesis = pytest.importorskip("schemathesis")
    generation_mode = schemathesis.GenerationMode(mode)
    schema = schemathesis.openapi.from_dict(_schema(server))
    statuses: Counter[int] = Counter()
    sent_to: set[str] = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        ids = []
        for feed in ("frames", "video"):
            for session in server.sessions.all():
                server.client.delete(f"/v1/sessions/{session.id}")
            ids.append(server.create(feed))
        frames = server.create()
        server.client.put(f"{frames}/frames/0", content=png(scene(1)[0]))
        ids = [path.rpartition("/")[2] for path in (ids[-1], frames)]

        send = _sender(server.port, operation, generation_mode, ids, statuses)
        with suppress(Unsatisfiable):  # an operation without a parameter has no wrong request
            send()
            sent_to.add(operation.label)
    print(statuses)  # noqa: T201
    assert sum(statuses.values()) > 10 * len(sent_to)
    assert statuses[401] == 0
    if mode == "positive":
        assert len(sent_to) == OPERATIONS
        assert statuses[200] > 0


def _sender(
    port: int, operation: Any, mode: Any, ids: list[str], statuses: Counter[int]
) -> Callable[[], None]:
    """Return a property test of one operation."""
    import requests

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode), which=integers(0, 3))
    def send(case: Any, which: int) -> None:
        if which < len(ids) and "id" in (case.path_parameters or {}):
            case.path_parameters["id"] = ids[which]
        if _is_long_wait((case.query or {}).get("wait_s")):
            case.query["wait_s"] = 0.1
        arguments = case.as_transport_kwargs(base_url=f"http://127.0.0.1:{port}")
        arguments["headers"]["authorization"] = f"Bearer {TOKEN}"
        with requests.request(**arguments, stream=True, timeout=30) as response:
            statuses[response.status_code] += 1
            assert response.status_code < 500 or "retry-after" in response.headers

    return send


def _is_long_wait(value: object) -> bool:
    with suppress(TypeError, ValueError):
        return float(value) > 0.1  # type: ignore[arg-type]
    return False
