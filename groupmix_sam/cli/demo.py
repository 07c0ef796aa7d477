"""`groupmix-sam demo`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Device, Encoder, ImageSize, Threads, weights_device

LOCAL = ("127.0.0.1", "localhost", "::1")


def demo(
    image: Annotated[Path | None, typer.Argument(help="Image that the page opens with.")] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="Weights such as 'default', or an exported folder. Repeat it for several."),
    ] = None,
    reference: Annotated[Path | None, typer.Option(help="MobileSAM's mobile_sam.pt, to compare masks with.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at. Any but the default opens the page to your network.")
    ] = LOCAL[0],
    port: Annotated[int, typer.Option(help="Port to listen at; the next free one if it is taken.", min=1, max=65535)] = 7860,
    labels: Annotated[
        Path | None, typer.Option(help="Folder for masks that the page saves as labels. The page adapts weights to them.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Training time of 'Adapt now'.")] = 10.0,
    encoder: Encoder = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Open a page to try models in a browser: click on an image, see the masks, until Ctrl-C or SIGTERM.

    groupmix-sam demo photo.jpg
    groupmix-sam demo --checkpoint default --checkpoint runs/line/weights --reference mobile_sam.pt
    groupmix-sam demo --labels my_parts/
    """
    import signal
    from functools import partial

    from ..demo.adapter import Adapter
    from ..demo.labels import Labels
    from ..demo.page import build, free_port, serve
    from ..demo.session import Demo, MakePredictor, load_named
    from ..inference import Predictor
    from ..weights import is_exported

    listen = free_port(host, port)
    run: dict[str, Any] = {"image_size": image_size, "device": device, "threads": threads}

    def load(source: str) -> tuple[str, MakePredictor]:
        name, predictor = load_named(source, encoder=encoder, **run)
        return name, partial(Predictor, predictor.model)

    named = {source: load(source) for source in checkpoint or ["default"]}
    mobile = None
    if reference is not None:
        run["device"] = weights_device(device)
        mobile = partial(Predictor, Predictor.from_pretrained(reference, **run).model)
    shared = Demo(dict(named.values()), mobile)
    adapter = None
    if labels is not None:
        sources = {name: source for source, (name, _) in named.items() if not is_exported(source)}
        given = {"--encoder": encoder, "--image-size": image_size, "--threads": threads}
        arguments = [text for option, value in given.items() if value is not None for text in (option, str(value))]
        adapter = Adapter(shared, Labels(labels), sources, load, minutes, arguments)
    page = build(shared, None if image is None else shared.open(image), adapter)
    serve(page, host, listen)
    if listen != port:
        typer.echo(f"port {port} is taken")
    if host not in LOCAL:
        typer.echo(f"warning: anyone who reaches {host} can use this page, which has neither password nor encryption", err=True)
    typer.echo(f"open http://{host}:{listen} in a browser; Ctrl-C ends it")
    # A service that is stopped ends as by Ctrl-C, so that no adaptation and no upload is left behind.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        page.block_thread()
    finally:
        signal.signal(signal.SIGTERM, before)
        if adapter is not None:
            adapter.stop()
