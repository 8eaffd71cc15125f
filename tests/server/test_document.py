"""The OpenAPI document, and whether the server does what it says (schemathesis)."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
import torch
from hypothesis import given
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.server.conftest import Paced

from trivium.server.app import Application, create_app
from trivium.server.served import Models

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture
def application(
    served: Callable[..., Models], paced: Callable[..., Paced]
) -> Iterator[Application]:
    tiny = paced()
    tiny.context = 100  # answers without a limit end here
    models = served(tiny)
    models.load()
    # A library that was linked with -ffast-math makes subnormal numbers 0, and hypothesis, which
    # draws numbers, refuses that.
    torch.set_flush_denormal(False)
    yield create_app(models)
    models.close()


PATHS = {
    "/health",
    "/metrics",
    "/v1/models",
    "/v1/models/{model}",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
}


@pytest.mark.parametrize("path", sorted(PATHS))
def test_the_server_keeps_to_its_document(application: Application, path: str) -> None:
    host = {"Host": "localhost"}
    document = schemathesis.openapi.from_asgi("/openapi.json", application.asgi, headers=host)
    (operation,) = document[path].values()
    answered = 0

    @given(operation.as_strategy())
    @hypothesis.settings(
        max_examples=30,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    def hold(case: schemathesis.Case) -> None:
        nonlocal answered
        if isinstance(case.body, dict):
            case.body["model"] = "letters" if "embeddings" in path else "tiny"
            if isinstance(n := case.body.get("n"), int):
                case.body["n"] = min(n, 3)  # each takes its time
        response = case.call(headers=host)
        case.validate_response(response, checks=CHECKS)
        answered += response.status_code == 200

    hold()
    assert answered or "{" in path


def test_the_document(application: Application) -> None:
    async def get() -> dict[str, Any]:
        transport = httpx.ASGITransport(application.asgi)
        async with httpx.AsyncClient(transport=transport) as client:
            return dict((await client.get("http://localhost/openapi.json")).json())

    document = asyncio.run(get())
    assert set(document["paths"]) == PATHS
    for methods in document["paths"].values():
        for operation in methods.values():
            assert "422" not in operation["responses"]
