"""The server: routes, threads, and errors as clients read them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from openresponses_types.types import CompactResource, ResponseResource
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client import Counter as Counted
from starlette.exceptions import HTTPException
from starlette.routing import Route

from ccm.core.errors import CCMError
from ccm.serving.completions import Completions, as_chunk
from ccm.serving.errors import REFUSALS, RequestError, unsupported
from ccm.serving.guard import Guard
from ccm.serving.keys import Keys
from ccm.serving.logs import LEFT, RequestLog, log_event
from ccm.serving.requests import ChatCompletion, Compact, CreateResponse
from ccm.serving.responses import MEMORY, Responses, as_event
from ccm.serving.service import Service
from ccm.serving.tables import StoreError, StoreUnavailableError


def _owner(request: Request, _: Annotated[Any, Security(HTTPBearer(auto_error=False))]) -> bytes:
    return request.state.owner  # as the guard found it


Owner = Annotated[bytes, Depends(_owner)]


def _declared(request: Request) -> None:
    """Refuse a query that its operation does not have, or has twice."""
    known = {one.alias for one in request.scope["route"].dependant.query_params}
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in known:
            raise unsupported(name)
        if count > 1:
            raise RequestError(f"{name} is given {count} times; give it once.", param=name)


PAGE = Path(__file__).with_name("page") / "index.html"
_POLICY = (
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"
)
_STREAMED: dict[str, Any] = {"content": {"text/event-stream": {}}}  # beside JSON, in the description
_HOUR = 3600.0
_AGAIN = 5  # seconds after which a store that could not be reached may be back
_LOOK = 0.2  # seconds after which a request that waits looks whether its client is there


class ClientLeft(Exception):  # noqa: N818  a signal like StopIteration, not an error
    """Nobody waits for the answer any more."""


def _is_field(part: str) -> bool:
    """Whether a part of a place is the name of a field, and not of a type."""
    return part.isidentifier() and part.islower()


def _once(work: Callable[[], dict[str, Any]]) -> Generator[dict[str, Any], None, None]:
    """A request with one event."""
    yield work()


def _used(event: dict[str, Any]) -> dict[str, int]:
    """What a request used, as the event tells that ends its reply: tokens, and the memory after it."""
    told = event.get("response") or event
    if not (usage := told.get("usage")):
        return {}
    asked, replied = ("input", "output") if "input_tokens" in usage else ("prompt", "completion")
    tokens = {
        "asked": usage[f"{asked}_tokens"],
        "cached": usage[f"{asked}_tokens_details"]["cached_tokens"],
        "replied": usage[f"{replied}_tokens"],
    }
    return tokens | {name: told[MEMORY][name] for name in ("entries", "bytes")}


def _answer(request: Request, error: RequestError) -> JSONResponse:
    """The answer to a request that is refused, or failed; the log tells its code."""
    request.state.code = error.code
    return JSONResponse(error.body, error.status, error.headers)


def _failure(error: Exception) -> RequestError:
    """What a client hears of an error that is not its own; of others than ours no more than that."""
    kind = type(error).__name__
    log_event("failure", f"A request failed: {kind}", logging.ERROR, kind=kind)
    if isinstance(error, StoreUnavailableError):
        again = {"Retry-After": str(_AGAIN)}
        return RequestError(str(error), status=503, code="store_unavailable", headers=again)
    if isinstance(error, StoreError):
        return RequestError(str(error), status=507, code="storage_full")
    told = str(error) if isinstance(error, CCMError) else "The server failed; its log names the kind of error."
    return RequestError(told, status=500, code="server_error")


class Metrics:
    """What Prometheus reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counted("ccm_requests", "Requests that were answered.", ["api"], registry=self.registry)
        self.tokens = Counted("ccm_tokens", "Tokens of replies.", registry=self.registry)
        self.seconds = Histogram("ccm_reply_seconds", "Seconds that a reply took.", registry=self.registry)
        self.waiting = Gauge("ccm_waiting", "Requests that wait for the model, or have it.", registry=self.registry)
        self.held = Gauge("ccm_store_bytes", "Bytes of the turns in the store.", registry=self.registry)
        self.owners = Gauge("ccm_store_keys", "Keys that have turns in the store.", registry=self.registry)
        self.fullest = Gauge("ccm_store_key_bytes", "Bytes of the key that has most of them.", registry=self.registry)

    def tell(self, held: Collection[int]) -> None:
        """Take the bytes of each key in the store."""
        self.held.set(sum(held))
        self.owners.set(len(held))
        self.fullest.set(max(held, default=0))


def running(service: Service) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """While the application runs, what was not used for too long is deleted once an hour; at its end, replies end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def expire() -> None:
            while True:
                await asyncio.sleep(_HOUR)
                try:
                    await anyio.to_thread.run_sync(service.store.expire)
                except CCMError as error:  # such as a full disk, which may have room in an hour
                    told = "What was not used for too long cannot be deleted"
                    log_event("expiry", told, logging.ERROR, kind=type(error).__name__)
                else:
                    log_event("expiry", "What was not used for too long is deleted")

        task = asyncio.create_task(expire())
        yield
        task.cancel()
        await anyio.to_thread.run_sync(service.backend.engine.stop)

    return lifespan


def make_app(service: Service, keys: Keys, *, body: int, rate: int) -> FastAPI:
    """The application for any ASGI server.

    Args:
        service: model, store and seal.
        keys: who may ask.
        body: most bytes of a request.
        rate: most requests of a key in a minute.
    """
    app = FastAPI(title="ccm", summary="Conversations with compressed context memory.", lifespan=running(service))
    responses, completions, metrics = Responses(service), Completions(service), Metrics()
    engine, name = service.backend.engine, service.backend.name
    about_model = {"id": name, "object": "model", "created": int(service.started), "owned_by": "ccm"}
    api = APIRouter(responses=REFUSALS, dependencies=[Depends(_declared)])

    async def events(
        work: Generator[dict[str, Any], None, None], request: Request, who: bytes, name: str
    ) -> AsyncIterator[dict[str, Any]]:
        """The events of a request that runs in the engine.

        Raises:
            RequestError: as of the engine and of the work.
            ClientLeft: when the client went away; then the request ends.
        """
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def emit(event: Any) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(arrived.put_nowait, event)

        begun = loop.time()
        with metrics.waiting.track_inprogress():
            task, looked, used = engine.submit(who, work, emit), loop.time(), dict[str, int]()
            try:
                while True:
                    if loop.time() - looked >= _LOOK:
                        looked = loop.time()
                        if await request.is_disconnected():
                            raise ClientLeft
                    try:
                        event = await asyncio.wait_for(arrived.get(), _LOOK)
                    except TimeoutError:
                        continue
                    if event is None:
                        metrics.requests.labels(name).inc()
                        if used:
                            metrics.seconds.observe(loop.time() - begun)
                        metrics.tokens.inc(used.get("replied", 0))
                        return
                    if isinstance(event, Exception):
                        raise event
                    request.state.used = used = _used(event) or used
                    yield event
            finally:
                engine.cancel(task)

    async def last(events: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | None:
        """The last event; None where the client left before it."""
        found = None
        try:
            async for event in events:
                found = event
        except ClientLeft:
            return None
        return found

    async def stream(events: AsyncIterator[dict[str, Any]], request: Request, write: Callable[[Any], str]) -> Response:
        """A stream that begins once the first event is there, so that a refusal has its status."""
        try:
            first = await anext(events)
        except ClientLeft:
            return Response(status_code=LEFT)

        async def lines() -> AsyncIterator[str]:
            yield write(first)
            number = 1
            try:
                async for event in events:
                    if line := write(event):
                        yield line
                    number += 1
            except ClientLeft:
                return
            except Exception as error:  # the status has gone out already: whatever it was, the client hears of it
                told = error if isinstance(error, RequestError) else _failure(error)
                request.state.code = told.code
                yield write({"type": "error", "sequence_number": number, **told.body})
            yield "data: [DONE]\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @api.post("/v1/responses", response_model=None, responses={200: {"model": ResponseResource, **_STREAMED}})
    async def create_response(body: CreateResponse, request: Request, who: Owner) -> Response:
        """Reply to what is new in a conversation."""
        coming = events(responses.create(who, body), request, who, "responses")
        if body.stream:
            return await stream(coming, request, as_event)
        event = await last(coming)
        return JSONResponse(event["response"]) if event else Response(status_code=LEFT)

    @api.post("/v1/responses/compact", response_model=None, responses={200: {"model": CompactResource}})
    async def compact_response(body: Compact, request: Request, who: Owner) -> Response:
        """A conversation as one opaque item, which the client keeps."""
        item = await last(events(_once(partial(responses.compact, who, body)), request, who, "compact"))
        return JSONResponse(item) if item else Response(status_code=LEFT)

    @api.get("/v1/responses/{response_id}", response_model=None, responses={200: {"model": ResponseResource}})
    def retrieve_response(response_id: str, who: Owner) -> Response:
        """A response that was kept."""
        return JSONResponse(responses.retrieve(who, response_id))

    @api.get("/v1/responses/{response_id}/input_items", response_model=None)
    def list_input_items(response_id: str, who: Owner) -> Response:
        """The items that came with a response."""
        items = responses.input_items(who, response_id)
        ends = {"first_id": items[0]["id"] if items else None, "last_id": items[-1]["id"] if items else None}
        return JSONResponse({"object": "list", "data": items, "has_more": False, **ends})

    @api.delete("/v1/responses/{response_id}", response_model=None)
    async def delete_response(
        response_id: str, request: Request, who: Owner, cascade: Annotated[bool, Query()] = False
    ) -> Response:
        """Delete a response with its memory; later ones of its chain hold what it said, unless they go, too."""
        delete = partial(responses.delete, who, response_id, cascade=cascade)  # it may make memories from text before
        told = await last(events(_once(delete), request, who, "delete"))
        return JSONResponse(told) if told else Response(status_code=LEFT)

    @api.post("/v1/chat/completions", response_model=None, responses={200: _STREAMED})
    async def create_completion(body: ChatCompletion, request: Request, who: Owner) -> Response:
        """Reply to messages, of which only those are read that are not in memory yet."""
        coming = events(completions.create(who, body), request, who, "chat")
        if body.stream:
            return await stream(coming, request, as_chunk)
        whole = await last(coming)
        return JSONResponse(whole) if whole else Response(status_code=LEFT)

    @api.get("/v1/models", response_model=None)
    def list_models(who: Owner) -> Response:
        """The one model of this server."""
        return JSONResponse({"object": "list", "data": [about_model]})

    @api.get("/v1/models/{name:path}", response_model=None)
    def show_model(name: str, who: Owner) -> Response:
        """What there is to know of it."""
        service.check_model(name)
        return JSONResponse(about_model)

    app.include_router(api)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        """A conversation in the browser."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": _POLICY})

    @app.get("/health", response_class=PlainTextResponse)
    async def health() -> Response:  # in no thread: those may all wait for the store
        """The process is alive, and its engine has not failed."""
        return PlainTextResponse(*(("failed\n", 500) if engine.failed else ("ok\n", 200)))

    @app.get("/ready", response_class=PlainTextResponse)
    def ready() -> Response:
        """The model is loaded, requests are taken on, and the store is there."""
        if not engine.ready:
            return PlainTextResponse("stopping\n", status_code=503)
        try:
            service.store.check()
        except CCMError as error:
            return PlainTextResponse(f"{error}\n", status_code=503)
        return PlainTextResponse("ok\n")

    @app.get("/metrics", response_model=None, response_class=PlainTextResponse)
    def show_metrics() -> Response:
        """For Prometheus; of a store that is away, as it was last."""
        with suppress(CCMError):
            metrics.tell(service.store.held().values())
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> JSONResponse:
        return _answer(request, error)

    @app.exception_handler(CCMError)
    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        return _answer(request, _failure(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        deepest = max(error.errors(), key=lambda one: len(one["loc"]))  # of the forms that an item may have
        place = ".".join(str(part) for part in deepest["loc"][1:12] if isinstance(part, int) or _is_field(part))
        told = f"{place}: {deepest['msg']}."
        if deepest["type"] == "extra_forbidden":
            return _answer(request, unsupported(place))
        if not place:
            told = "The body must be a JSON object, sent with the header content-type: application/json."
        return _answer(request, RequestError(told, param=place or None))

    @app.exception_handler(HTTPException)
    async def absent(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        headers, path = error.headers, getattr(request.scope.get("route"), "path", None)
        if error.status_code == 405 and path in app.openapi()["paths"]:  # the router names those of one operation alone
            headers = {"Allow": ", ".join(app.openapi()["paths"][path]).upper()}
        return _answer(request, RequestError(error.detail, status=error.status_code, code=code, headers=headers))

    app.add_middleware(Guard, keys=keys, body=body, rate=rate)
    app.add_middleware(RequestLog, routes=[one for one in (*api.routes, *app.routes) if isinstance(one, Route)])
    return app
