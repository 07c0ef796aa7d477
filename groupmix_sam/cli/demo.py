"""`groupmix-sam demo`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Encoder

LOCAL = ("127.0.0.1", "localhost", "::1")


def demo(
    picture: Annotated[Path | None, typer.Argument(help="A picture that the page opens with.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Weights as for --checkpoint, or a folder that `groupmix-sam export` wrote; may be given again."),
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="MobileSAM's mobile_sam.pt, to compare masks with.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; another one opens the page to your network.")] = LOCAL[0],
    port: Annotated[int, typer.Option(help="Port to listen at, or the next one that is free.", min=1, max=65535)] = 7860,
    encoder: Encoder = "gmf_sam_2282",
    image_size: Annotated[int, typer.Option(help="Of weights: side in pixels that the picture is resized to.")] = 1024,
) -> None:
    """Open a page to try models in a browser: click on a picture, see the masks, until Ctrl-C.

    groupmix-sam demo photo.jpg
    groupmix-sam demo --model default --model runs/line/weights --reference mobile_sam.pt
    """
    from ..demo.page import build, free_port, serve
    from ..demo.session import Demo, load_predictor
    from ..deploy import Predictor
    from ..sam import build_sam_groupmix

    listen = free_port(host, port)
    models = dict(load_predictor(source, encoder=encoder, image_size=image_size) for source in model or ["default"])
    mobile = None
    if reference is not None:
        mobile = Predictor(build_sam_groupmix(reference, encoder="sam_tiny_vit_5m", image_size=image_size))
    shared = Demo(models, mobile)
    page = build(shared, None if picture is None else shared.open(picture))
    serve(page, host, listen)
    if listen != port:
        typer.echo(f"port {port} is taken")
    if host not in LOCAL:
        typer.echo(f"warning: whoever reaches {host} can use this page, without a password or encryption", err=True)
    typer.echo(f"open http://{host}:{listen} in a browser; Ctrl-C ends it")
    page.block_thread()
