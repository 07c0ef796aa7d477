"""`groupmix-sam stream`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidInputError
from .options import Device, Encoder, ImageSize, Model, Threads, numbers


def stream(
    source: Annotated[str, typer.Argument(help="A camera's index or device, a URL such as rtsp://..., or a video file.")],
    box: Annotated[
        list[str] | None, typer.Option(help="left,top,right,bottom in pixels. Repeat it for several instances.")
    ] = None,
    point: Annotated[list[str] | None, typer.Option(help="x,y in pixels. Repeat it for several instances.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="The same in a JSON file: boxes, or points with labels.")] = None,
    track: Annotated[
        bool, typer.Option("--track", help="Follow the objects that the prompts mean in the first frame.")
    ] = False,
    fixed_camera: Annotated[
        bool, typer.Option("--fixed-camera", help="For a camera that stands still: encode only what moves. Not in TensorRT.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="With --track: encode only around the followed objects.")] = False,
    masks: Annotated[
        Path | None, typer.Option(help="Append masks to this file: one line of JSON per frame, as run lengths.")
    ] = None,
    overlay: Annotated[Path | None, typer.Option(help="Write a video with the masks drawn, .mp4 or .avi.")] = None,
    coco: Annotated[
        Path | None, typer.Option(help="Write COCO annotations for videos to this file when the stream ends.")
    ] = None,
    crops: Annotated[Path | None, typer.Option(help="Write each object cut out of each frame into this folder.")] = None,
    drift: Annotated[
        Path | None,
        typer.Option(help="Folder of weights from `adapt`: report when frames no longer look like those adapted to."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Stop after this many frames.", min=1)] = None,
    checkpoint: Model = "default",
    encoder: Encoder = None,
    image_size: ImageSize = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Segment the frames of a camera or a video, until it ends or is stopped by Ctrl-C or SIGTERM.

    groupmix-sam stream 0 --box 170,16,420,312 --masks masks.jsonl
    groupmix-sam stream video.mp4 --track --box 170,16,420,312 --overlay seen.mp4
    groupmix-sam stream rtsp://camera/1 --checkpoint exported/ --prompts prompts.json --overlay seen.mp4
    groupmix-sam stream 0 --box 170,16,420,312 --checkpoint runs/mine/weights --drift runs/mine/weights
    """
    import signal
    import time
    from contextlib import ExitStack

    from ..inference import Predictor
    from ..inference.drift import Drift, DriftAlarm
    from ..live.loop import stream as run_stream
    from ..live.loop import track as run_track
    from ..live.partial import PartialPredictor
    from ..live.sinks import Clock, CocoVideo, Crops, MaskFile, Overlay
    from ..live.sources import Frames
    from ..live.tracker import Tracker
    from ..memory import keep_freed_memory
    from ..prompts import Prompt, read_shared_prompts
    from ..weights import is_exported

    if (box is not None) + (point is not None) + (prompts is not None) != 1:
        raise InvalidInputError("say what to segment by one of --box, --point and --prompts.")
    if follow and not track:
        raise InvalidInputError("--follow encodes around what --track follows: give both.")
    if prompts is not None:
        wanted = read_shared_prompts(prompts)
    elif box is not None:
        wanted = [Prompt(box=numbers(text, 4, "left,top,right,bottom")) for text in box]
    else:
        wanted = [Prompt([numbers(text, 2, "x,y")], [1]) for text in point or []]
    frames = Frames(source)
    exported, partial = is_exported(checkpoint), fixed_camera or follow
    if not exported:
        keep_freed_memory()
    predictor = Predictor.from_pretrained(
        checkpoint,
        encoder=encoder,
        image_size=image_size,
        device=device,
        # A window's features are closer to those of the frame without padding. Drift is told by those of the frame with it.
        pad=exported or not partial or drift is not None,
        threads=threads,
    )
    alarm = DriftAlarm(Drift.load(drift, predictor.model_hash), predictor) if drift is not None else None
    model = PartialPredictor(predictor, follow=follow) if partial else predictor
    clock, told, count = Clock(), time.monotonic(), 0
    with ExitStack() as stack:
        # A service that is stopped ends as by Ctrl-C, so that its files are kept.
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler))
        outputs: list[Any] = []
        if masks is not None:
            outputs.append(stack.enter_context(MaskFile(masks)))
        if overlay is not None:
            outputs.append(stack.enter_context(Overlay(overlay, frames.rate)))
        if coco is not None:
            outputs.append(stack.enter_context(CocoVideo(coco)))
        if crops is not None:
            outputs.append(stack.enter_context(Crops(crops)))
        try:
            results = run_track(Tracker(model), frames, wanted) if track else run_stream(model, frames, wanted)
            for result in results:
                for output in outputs:
                    output.write(result)
                if alarm is not None and alarm.update(result.frame):
                    typer.echo(f"frame {result.number}: {alarm.message()}", err=True)
                clock.add(result.seconds)
                count += 1
                if time.monotonic() - told > 5:
                    typer.echo(f"{count} frames: {clock.summary()}")
                    told = time.monotonic()
                if count == limit:
                    break
        except KeyboardInterrupt:
            typer.echo("stopped")
        finally:
            frames.close()
    typer.echo(f"{count} frames: {clock.summary()}")
