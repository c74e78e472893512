"""The side port: health, metrics and the description of the messages. Nothing here changes anything."""

import asyncio
import socket
from contextlib import contextmanager
from typing import Any

import uvicorn
from faststream.asgi import AsgiFastStream, AsgiResponse, get
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service import asyncapi
from service.config import Settings
from service.health import Health
from service.observability import REGISTRY


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: one place decides when the process ends."""

    @contextmanager
    def capture_signals(self) -> Any:
        yield


class HttpServer:
    """Serves ``/health/live``, ``/health/ready``, ``/metrics``, ``/asyncapi`` and ``/asyncapi.html``."""

    def __init__(self, settings: Settings, health: Health) -> None:
        app = AsgiFastStream(
            asgi_routes=[
                ("/health/live", _live),
                ("/health/ready", _ready(health)),
                ("/metrics", _metrics),
                ("/asyncapi", _document),
                ("/asyncapi.html", _page),
            ]
        )
        self._settings = settings
        self._server = _Server(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        host, port = self._socket.getsockname()[:2] if self._socket else (self._settings.http_host, 0)
        return f"http://{host}:{port}"

    def listen(self) -> None:
        """Take the port; raises OSError if it cannot be had."""
        self._socket = socket.create_server((self._settings.http_host, self._settings.http_port))

    def start(self) -> None:
        """Answer requests from now on."""
        sockets = [self._socket] if self._socket else None
        self._task = asyncio.create_task(self._server.serve(sockets=sockets), name="http")

    async def stop(self) -> None:
        if self._task is not None:
            self._server.should_exit = True
            await asyncio.gather(self._task, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()


@get
async def _live(_: Any) -> AsgiResponse:
    """Says that the process runs, and nothing of others."""
    return _json({"status": "alive"})


def _ready(health: Health) -> Any:
    @get
    async def ready(_: Any) -> AsgiResponse:
        is_ready, checks = await health.ready()
        return _json({"status": "ready" if is_ready else "not ready", **checks}, status=200 if is_ready else 503)

    return ready


@get
async def _metrics(_: Any) -> AsgiResponse:
    return AsgiResponse(generate_latest(REGISTRY), 200, {"content-type": CONTENT_TYPE_LATEST})


@get
async def _document(_: Any) -> AsgiResponse:
    return _json(asyncapi.document())


@get
async def _page(_: Any) -> AsgiResponse:
    headers = {
        "content-type": "text/html; charset=utf-8",
        # The page needs nothing but itself, and the browser is told so.
        "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    }
    return AsgiResponse(asyncapi.page().encode(), 200, headers)


def _json(body: dict[str, Any], status: int = 200) -> AsgiResponse:
    return AsgiResponse(asyncapi.dumps(body).encode(), status, {"content-type": "application/json"})
