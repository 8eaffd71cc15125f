"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from trivium.errors import NotFound, TriviumError, UsageError
from trivium.language.engine import ContextOverflow

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


class ApiError(HTTPException):
    """What a client is told. `retry` is after how many seconds it may try again."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry: int | None = None,
    ) -> None:
        super().__init__(status, message)
        self.param, self.code, self.retry = param, code, retry

    def to_json(self) -> dict[str, Any]:
        kind = TYPES.get(self.status_code, "invalid_request_error")
        error = {"message": self.detail, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        headers = {"Retry-After": str(self.retry)} if self.retry is not None else {}
        if self.status_code == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return reply(self.to_json(), self.status_code, headers)


def encode(value: Any) -> bytes:
    """JSON in UTF-8. Half a surrogate pair, which a client may have sent, becomes "?"."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(value), status, headers, "application/json")


def of(error: Exception) -> ApiError:
    """Any failure as what a client is told; a defect of ours does not show its insides."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextOverflow):
        return ApiError(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, UsageError):
        return ApiError(400, str(error), code="invalid_value")
    if isinstance(error, NotFound):
        return ApiError(404, str(error), code="not_found")
    if isinstance(error, TriviumError):  # of the model: its logits hold NaN, …
        return ApiError(500, str(error), code="model_failed")
    return ApiError(500, f"the server failed: {type(error).__name__}", code="internal_error")


def of_validation(errors: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """The first fault of a body, with the way to it: `messages.0.role`."""
    if len(errors[0]["loc"]) == 1 or not isinstance(body, dict):
        return ApiError(400, "the body must be a JSON object", code="invalid_json")
    # Of the members of a union, the one that got farthest is what was meant: not another type.
    field = errors[0]["loc"][1]
    ways = [(_way(fault, body), fault) for fault in errors if fault["loc"][1] == field]
    path, fault = max(
        ways, key=lambda way: (way[0].count("."), not way[1]["type"].endswith("_type"))
    )
    message = "is missing" if fault["type"] == "missing" else f"is wrong: {fault['msg']}"
    return ApiError(400, f"{path} {message}", param=path, code="invalid_value")


def _way(fault: Mapping[str, Any], body: Any) -> str:
    """The place of a fault in `body`. A place in a union names its member too: left out."""
    value: Any = body
    steps = list[str]()
    for step in fault["loc"][1:]:
        if isinstance(value, dict) and (step in value or fault["type"] == "missing"):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int):
            value = value[step]
        else:
            continue
        steps.append(str(step))
    return ".".join(steps)


def install(app: FastAPI) -> None:
    """Give every failure of `app` the shape."""

    async def validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return of_validation(error.errors(), error.body).response()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}"
        message = {404: f"there is no {what}", 405: f"{what} is not allowed"}
        api = ApiError(error.status_code, message.get(error.status_code, str(error.detail)))
        response = api.response()
        response.headers.update(error.headers or {})
        return response

    async def other(request: Request, error: Exception) -> Response:
        return of(error).response()

    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
    for kind in (ApiError, TriviumError, Exception):
        app.add_exception_handler(kind, other)
