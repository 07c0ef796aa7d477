"""`groupmix-sam serve`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Encoder, ImageSize, Model, Threads


def serve(
    root: Annotated[
        Path | None, typer.Option(help="The only folder whose image files clients may name. Default: none.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at. Any but this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.", min=0, max=65535)] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="GROUPMIX_SAM_TOKEN",
            help="Token that clients must send as 'Authorization: Bearer TOKEN'. Other users see an option, not the variable.",
        ),
    ] = None,
    images: Annotated[int, typer.Option(help="Images to keep, 15 MB each; the least recently used goes first.")] = 32,
    queue: Annotated[int, typer.Option(help="Requests that may wait; further ones get 503.")] = 16,
    max_megabytes: Annotated[float, typer.Option(help="Largest image file.")] = 40,
    rate: Annotated[float, typer.Option(help="Requests per second from one address; further ones get 429.")] = 100,
    timeout: Annotated[float, typer.Option(help="Seconds for a request, waiting included.")] = 60,
    checkpoint: Model = "default",
    encoder: Encoder = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Serve masks over HTTP, until Ctrl-C or SIGTERM.

    groupmix-sam serve --root photos/
    groupmix-sam serve --checkpoint exported/ --port 8080
    GROUPMIX_SAM_TOKEN=$(openssl rand -hex 32) groupmix-sam serve --host 0.0.0.0
    """
    from ..inference import Predictor
    from ..serve.app import build, check_token, listen, run
    from ..serve.engine import Engine, Limits

    limits = Limits(images, queue, max_megabytes, rate, timeout)
    check_token(token, host)
    with listen(host, port) as listening:
        predictor = Predictor.from_pretrained(
            checkpoint, encoder=encoder, image_size=image_size, device=device, threads=threads
        )
        app = build(Engine(predictor, limits, root), token=token, host=host)
        address = f"[{host}]" if ":" in host else host
        typer.echo(f"serving at http://{address}:{listening.getsockname()[1]}/docs; Ctrl-C ends it")
        run(app, listening, timeout)
    typer.echo("stopped")
