"""The HTTP API, OpenAI's: models, chat, completions, embeddings; and what operators look at."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from trivium import __version__
from trivium.server import chat, completions, embeddings, errors, schema
from trivium.server import plan as plans
from trivium.server.errors import ApiError, reply
from trivium.server.guard import Access, Guard, StrictRequest
from trivium.server.metrics import CONTENT_TYPE, Metrics
from trivium.server.served import Models
from trivium.server.streams import attended, stream
from trivium.server.workers import Workers

STATUSES = (400, 401, 403, 404, 408, 413, 415, 429, 500, 503)
FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.ErrorReply, "description": "error"} for status in STATUSES
}


@dataclass(frozen=True)
class Settings:
    """`max_concurrent` answers are made at a time; `queue` more requests may wait."""

    access: Access = Access()
    max_concurrent: int = 8
    queue: int = 64


@dataclass(frozen=True)
class Server:
    """What the routes share."""

    models: Models
    workers: Workers
    metrics: Metrics


class _Route(APIRoute):
    """A route that reads JSON strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return handle


@dataclass(frozen=True)
class Application:
    """The guarded application, and what whoever runs it needs to stop it."""

    asgi: ASGIApp
    server: Server


def streamed(model: type[Any]) -> dict[int | str, dict[str, Any]]:
    """What a route says of its answers: JSON, or events if the request asked for a stream."""
    return {200: {"model": model, "content": {"text/event-stream": {}}}}


def create_app(models: Models, settings: Settings = Settings()) -> Application:
    """The server over `models`, which are loaded by somebody else; until then it answers 503."""
    metrics = Metrics()
    workers = Workers(settings.max_concurrent, settings.queue)
    server = Server(models, workers, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await workers.close()
        models.close()

    app = FastAPI(
        title="Trivium", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.router.route_class = _Route
    app.include_router(_observing(server))
    app.include_router(_answering(server))
    errors.install(app)
    document = app.openapi

    def without_422() -> dict[str, Any]:
        found = document()
        for methods in found["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
        return found

    app.openapi = without_422  # type: ignore[method-assign]
    for name, help, value in (
        ("trivium_requests_running", "Answers being made.", lambda: workers.running),
        ("trivium_requests_waiting", "Answers in line.", lambda: workers.waiting),
        ("trivium_slots", "Answers that can be made at a time.", lambda: workers.capacity),
        ("trivium_models_ready", "1 when every model is loaded.", lambda: models.ready),
        ("trivium_kv_cache_tokens", "Tokens whose keys and values are kept.", models.cached_tokens),
    ):
        metrics.gauges[name] = (help, value)
    return Application(Guard(app, settings.access, metrics), server)


def _observing(server: Server) -> APIRouter:
    router = APIRouter(route_class=_Route, responses=FAULTS)

    @router.get("/health")
    async def health() -> Response:
        """200 when requests are answered, 503 before."""
        if not server.models.ready:
            raise ApiError(503, "the models are being loaded", code="model_loading", retry=2)
        return reply({"status": "ok"})

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(server.metrics.text(), media_type=CONTENT_TYPE)

    @router.get("/v1/models", responses={200: {"model": schema.ModelsReply}})
    async def models() -> Response:
        return reply({"object": "list", "data": server.models.cards()})

    @router.get("/v1/models/{model:path}", responses={200: {"model": schema.ModelReply}})
    async def model(model: str) -> Response:
        return reply(server.models.card(model))

    return router


def _answering(server: Server) -> APIRouter:
    router = APIRouter(route_class=_Route, responses=FAULTS)
    workers = server.workers

    async def answer(kind: Any, model: Any, body: Any, request: Request) -> Response:
        start = time.monotonic()
        plan = await workers.prepare(lambda: kind.plan(model, body))
        pieces = plans.answer(plan, workers, server.metrics, start)
        if body.stream:
            return await stream(request, kind.chunks(plan, pieces))

        async def whole() -> Response:
            return reply(await kind.whole(plan, pieces))

        return await attended(request, whole())

    @router.post("/v1/chat/completions", responses=streamed(schema.ChatReply))
    async def chat_completions(body: schema.ChatRequest, request: Request) -> Response:
        return await answer(chat, server.models.language(body.model), body, request)

    @router.post("/v1/completions", responses=streamed(schema.CompletionReply))
    async def text_completions(body: schema.CompletionRequest, request: Request) -> Response:
        return await answer(completions, server.models.language(body.model), body, request)

    @router.post("/v1/embeddings", responses={200: {"model": schema.EmbeddingsReply}})
    async def embed(body: schema.EmbeddingRequest, request: Request) -> Response:
        model = server.models.embedding(body.model)
        texts = embeddings.texts(body)
        tokens = await workers.prepare(lambda: embeddings.count(model, texts))
        wanted = list(zip(texts, tokens, strict=True))

        async def whole() -> Response:
            pieces = workers.run([partial(embeddings.vectors, model, wanted)])
            async with contextlib.aclosing(pieces):
                found = torch.cat([some async for batch in pieces for _, some in batch])
            return reply(embeddings.to_json(model, body, found, sum(tokens)))

        return await attended(request, whole())

    return router
