"""The server's routes and the server: FastAPI around an `Engine`, behind a `Guard`."""

import ipaddress
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from ..errors import BusyError, GroupMixSamError, ImageReadError, InvalidInputError, MissingExtraError, NoImageError
from ..masks import TOLERANCE
from ..prompts import Prompt
from .engine import Engine
from .metrics import Metrics
from .render import Format, Rendered, render

try:
    import uvicorn
    from fastapi import Depends, FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.security import HTTPBearer
    from fastapi_offline import FastAPIOffline
    from pydantic import BaseModel, ConfigDict, Field, model_validator
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    from .guard import Guard, refusal
except ImportError as e:
    raise MissingExtraError.of(e.name or "fastapi", "serve") from e

__all__ = ["build", "check_token", "listen", "run", "server"]

MAX_PROMPTS = 64
MAX_POINTS = 256
MAX_POINTS_PER_SIDE = 32
TOKEN_LENGTH = 16
DESCRIPTION = """Send an image to `POST /images`, or name one on the server to `POST /images/open`.
Then ask for masks by its id.

Coordinates are pixels of the image, x before y, counted from 0 at the upper left.
Errors are JSON: `{"detail": "what, and what to do"}`.
`503` and `429` say in the header `Retry-After` when to come back."""
BINARY = {"schema": {"type": "string", "format": "binary"}}

# Far beyond any image, and exact in fp32.
Pixels = Annotated[float, Field(ge=-1e6, le=1e6)]


class _Body(BaseModel):
    # What is misspelt would be ignored in silence.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ImagePath(_Body):
    """An image file on the server."""

    path: Annotated[str, Field(max_length=4096, description="Below the server's --root.", examples=["line3/0001.jpg"])]


class ImageId(BaseModel):
    """An image that the server keeps."""

    id: str
    width: int
    height: int


class PromptBody(_Body):
    """What to segment: points, a box or both."""

    points: Annotated[list[tuple[Pixels, Pixels]], Field(max_length=MAX_POINTS, description="Each x, y.")] = []
    labels: Annotated[list[Literal[0, 1]], Field(description="1 foreground, 0 background; by default all 1.")] = []
    box: Annotated[tuple[Pixels, Pixels, Pixels, Pixels] | None, Field(description="left, top, right, bottom")] = None
    category: Annotated[str | None, Field(max_length=100, description="Comes back with the mask.")] = None

    @model_validator(mode="after")
    def _whole(self) -> "PromptBody":
        if not self.points and self.box is None:
            raise ValueError("give points or a box")
        if self.labels and len(self.labels) != len(self.points):
            raise ValueError(f"{len(self.labels)} labels for {len(self.points)} points: give one each, or none")
        return self

    def prompt(self) -> Prompt:
        """Return it as the rest of the package has it."""
        box = None if self.box is None else list(self.box)
        return Prompt([[x, y] for x, y in self.points], [int(label) for label in self.labels], box, self.category)


class _Wanted(_Body):
    format: Annotated[
        Format,
        Field(
            description="rle and polygons: JSON. png: all masks in one, 255 inside and 0 outside. labels: a PNG with n for the "
            "n-th instance. With a PNG the scores are in the header X-Scores."
        ),
    ] = "rle"
    tolerance: Annotated[float, Field(ge=0, le=1000, description="Pixels that polygons may deviate.")] = TOLERANCE


class MasksBody(_Wanted):
    """Prompts on an image, one for each instance."""

    prompts: Annotated[list[PromptBody], Field(min_length=1, max_length=MAX_PROMPTS, examples=[[{"box": [170, 16, 420, 312]}]])]


class EverythingBody(_Wanted):
    """A grid of points on an image."""

    points_per_side: Annotated[int, Field(ge=1, le=MAX_POINTS_PER_SIDE, description="Time grows with its square.")] = 16
    pred_iou_thresh: Annotated[float, Field(ge=0, le=1, description="Drop masks with a lower predicted IoU.")] = 0.88
    stability_score_thresh: Annotated[
        float, Field(ge=0, le=1, description="Drop masks that change more when the mask threshold moves.")
    ] = 0.95
    min_mask_area: Annotated[int, Field(ge=0, le=10**9, description="Drop masks with fewer pixels.")] = 0


class InstanceBody(BaseModel):
    """A mask, as `rle` or as `polygons`."""

    score: Annotated[float, Field(description="Predicted IoU.")]
    category: str
    box: Annotated[tuple[int, int, int, int], Field(description="left, top, right, bottom of the mask")]
    area: Annotated[int, Field(description="Pixels.")]
    rle: Annotated[dict[str, Any] | None, Field(description="COCO's compressed run lengths: size and counts.")] = None
    polygons: Annotated[
        list[list[list[tuple[int, int]]]] | None, Field(description="Parts, each an outline and its holes, each points x, y.")
    ] = None


class MasksAnswer(BaseModel):
    """The instances: in the prompts' order, or of a grid the largest first."""

    width: int
    height: int
    instances: list[InstanceBody]


class Problem(BaseModel):
    """Why a request was refused."""

    detail: Annotated[str, Field(description="What is wrong, and what to do.")]


class Health(BaseModel):
    """Whether the server works."""

    status: Literal["ok", "stuck"]


MASKS: dict[int | str, dict[str, Any]] = {200: {"model": MasksAnswer, "content": {"image/png": BINARY}}}


def build(engine: Engine, *, token: str | None = None, host: str = "127.0.0.1") -> FastAPI:
    """Return the server's ASGI application.

    Args:
        engine: The model and its images; it is closed when the application ends.
        token: What clients must send; None for none.
        host: The address that it will be reached at.
    """
    from .. import __version__

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    metrics = Metrics(engine)
    app = FastAPIOffline(
        redoc_url=None,
        redirect_slashes=False,
        title="groupmix-sam",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,  # what generated clients name their methods after
        responses={"default": {"model": Problem, "description": "An error."}},
        # For the page's Authorize button; the guard has checked it.
        dependencies=[Depends(HTTPBearer(auto_error=False))] if token else [],
    )
    app.add_middleware(Guard, limits=engine.limits, token=token, host=host, metrics=metrics)

    @app.exception_handler(GroupMixSamError)
    async def on_error(_: Request, error: GroupMixSamError) -> Response:
        if isinstance(error, BusyError):
            return refusal(503, str(error), retry_after=str(error.seconds))
        if isinstance(error, NoImageError):
            return refusal(404, str(error))
        # A client cannot fix what is not about its request, such as a GPU that fails.
        return refusal(422 if isinstance(error, (ImageReadError, InvalidInputError)) else 500, str(error))

    @app.exception_handler(Exception)
    async def on_failure(_: Request, __: Exception) -> Response:
        return refusal(500, "the server failed: its log says why.")

    @app.exception_handler(HTTPException)
    async def on_http_error(_: Request, error: HTTPException) -> Response:
        return refusal(error.status_code, str(error.detail), **(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> Response:
        # FastAPI's own answer repeats the input, and fails on one that JSON or UTF-8 cannot have.
        found = error.errors()
        texts = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}"[:300] for one in found[:3]]
        return refusal(422, "; ".join(texts) + ("; ..." if found[3:] else "") + ". See /docs.")

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=400)  # which nobody reads

    @app.post(
        "/images",
        status_code=201,
        tags=["images"],
        openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": BINARY}}},
    )
    async def add_image(request: Request) -> ImageId:
        """Encode an image: the request's body is the file, such as a JPEG or a PNG."""
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise HTTPException(415, "the body is a form: send the file itself, as curl --data-binary @photo.jpg does.")
        with engine.place():
            data = await request.body()
            return await engine.run(lambda: _add(engine, metrics, data, "the image"))

    @app.post("/images/open", status_code=201, tags=["images"])
    async def open_image(body: ImagePath) -> ImageId:
        """Encode an image file that lies below the server's --root."""
        with engine.place():
            return await engine.run(lambda: _add(engine, metrics, engine.read(body.path), ascii(body.path)))

    @app.get("/images/{image_id}", tags=["images"])
    async def get_image(image_id: str) -> ImageId:
        """Return an image's size, and put off its eviction."""
        height, width = engine.find(image_id).size
        return ImageId(id=image_id, width=width, height=height)

    @app.delete("/images/{image_id}", status_code=204, tags=["images"])
    async def delete_image(image_id: str) -> None:
        """Forget an image."""
        engine.remove(image_id)

    @app.post("/images/{image_id}/masks", response_model=MasksAnswer, responses=MASKS, tags=["masks"])
    async def get_masks(image_id: str, body: MasksBody) -> Response:
        """Segment an instance for each prompt: the best of three masks for one point, else the single mask."""
        kept = engine.find(image_id)

        def work() -> Rendered:
            with metrics.work.labels("masks").time():
                found = engine.segment(kept, [one.prompt() for one in body.prompts])
                return render(found, kept.size, body.format, body.tolerance)

        with engine.place():
            return _response(await engine.run(work))

    @app.post("/images/{image_id}/everything", response_model=MasksAnswer, responses=MASKS, tags=["masks"])
    async def get_everything(image_id: str, body: EverythingBody) -> Response:
        """Segment everything: prompt with a grid of points and keep the good masks."""
        kept = engine.find(image_id)

        def work() -> Rendered:
            with metrics.work.labels("everything").time():
                found = engine.everything(kept, body.model_dump(exclude={"format", "tolerance"}))
                return render(found, kept.size, body.format, body.tolerance)

        with engine.place():
            return _response(await engine.run(work))

    @app.get("/health", tags=["server"], responses={503: {"model": Health}})
    async def get_health(response: Response) -> Health:
        """Say whether the server works: `stuck` if one piece of work takes five times the time limit."""
        stuck = engine.working_for > 5 * engine.limits.timeout
        response.status_code = 503 if stuck else 200
        return Health(status="stuck" if stuck else "ok")

    @app.get("/metrics", tags=["server"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def get_metrics() -> Response:
        """Return figures for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    return app


def _add(engine: Engine, metrics: Metrics, data: bytes, name: str) -> ImageId:
    with metrics.work.labels("encode").time():
        key, (height, width) = engine.add(data, name)
    return ImageId(id=key, width=width, height=height)


def _response(rendered: Rendered) -> Response:
    return Response(rendered.body, media_type=rendered.media_type, headers=rendered.headers)


def check_token(token: str | None, host: str) -> None:
    """Raise InvalidInputError if a server at that address needs a token, or this one cannot be sent or is easy to guess."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    how = "set the environment variable GROUPMIX_SAM_TOKEN, for example to what `openssl rand -hex 32` prints"
    if token is None:
        if not local:
            raise InvalidInputError(f"whoever reaches {host} could use the server: {how}.")
    elif len(token) < TOKEN_LENGTH or not (token.isascii() and token.isprintable()) or " " in token:
        raise InvalidInputError(f"the token is no {TOKEN_LENGTH} or more printable ASCII characters without spaces: {how}.")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 is any free one.

    Raises:
        InvalidInputError: the address is not this machine's, or the port is taken.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as e:
        raise InvalidInputError(f"cannot listen at {host} on port {port} ({e}): give another --host or --port.") from e


def server(app: FastAPI, timeout: float) -> uvicorn.Server:
    """Return uvicorn as it is set up for `build`'s application.

    Args:
        app: What `build` returned.
        timeout: Seconds that requests have to end when the server stops.
    """
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a client could name any address, and escape the rate limit
        limit_concurrency=512,
        timeout_graceful_shutdown=max(1, round(timeout)),
    )
    return uvicorn.Server(config)


def run(app: FastAPI, listening: socket.socket, timeout: float) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what has been asked and return; arguments as for `server`."""
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: None) for number in signals]
    try:
        server(app, timeout).run([listening])  # it stops on a signal, which it raises again at the end
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
