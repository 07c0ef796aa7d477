"""The page's Video tab: gradio's components around a `Clip` and the `Session` of its first frame."""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import numpy as np

from ..errors import GroupMixSamError, InvalidInputError
from .clip import Clip, Step
from .image_tab import HEIGHT, KINDS, hint_text, upload_path
from .session import Demo, Session

__all__ = ["video_tab"]

START = "Start with a clip: drop it, choose a file, or record one with the camera."


def video_tab(demo: Demo, session_seconds: float) -> None:
    """Add the tab to the page that is being built.

    Args:
        demo: The models.
        session_seconds: How long a visitor's session is kept.
    """
    session = gr.State(Session(), time_to_live=session_seconds)
    clip = gr.State(None, time_to_live=session_seconds)
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            frame = gr.Image(
                label="Frame",
                format="jpeg",
                height=HEIGHT,
                buttons=["fullscreen"],
                interactive=False,
                elem_id="frame",
            )
            hint = gr.Markdown(START, elem_id="video-hint")
        with gr.Column(scale=2, min_width=300):
            video = gr.Video(label="Clip", sources=["upload", "webcam"], height=130, buttons=[], elem_id="clip")
            with gr.Row():
                clear = gr.Button("Clear", size="sm", min_width=80, elem_id="video-clear")
                follow = gr.Button("Follow", size="sm", min_width=80, variant="primary", interactive=False, elem_id="follow")
                stop = gr.Button("Stop", size="sm", min_width=80, interactive=False, elem_id="stop")
            with gr.Row():
                files = [
                    gr.DownloadButton(label, size="sm", min_width=80, interactive=False, elem_id=name)
                    for label, name in (("Save masks", "save-masks"), ("Save video", "save-video"))
                ]
            model = gr.Dropdown(list(demo.models), value=demo.models[0], label="Model", elem_id="video-model")
            kind = gr.Radio(KINDS, value="foreground", label="A click sets", elem_id="video-kind")
            fixed = gr.Checkbox(label="The camera stands still: encode only what moves", elem_id="fixed")
    outputs = [session, clip, frame, hint, follow, stop, *files]

    def show(session: Session, clip: Clip | None, *, text: str | None = None) -> list[Any]:
        """Return the values of the outputs before an object is followed."""
        said = text or (START if session.image is None else hint_text(session))
        disabled = gr.Button(interactive=False)
        ready = gr.Button(interactive=session.mask() is not None)
        return [session, clip, session.draw(), said, ready, disabled, *_no_files()]

    def update(session: Session, clip: Clip | None, model: str, action: Callable[[], Session]) -> list[Any]:
        try:
            session = demo.predict(action(), model)
        except GroupMixSamError as e:
            gr.Warning(str(e))
        return show(session, clip)

    def on_open(file: dict[str, Any] | None, before: Clip | None, model: str) -> list[Any]:
        if before is not None:
            before.discard()
        if file is None:
            return show(Session(), None)
        try:
            clip = Clip(upload_path(file))
            first = clip.first_frame()
        except GroupMixSamError as e:
            gr.Warning(str(e))
            return show(Session(), None)
        return update(first, clip, model, lambda: first)

    def on_click(session: Session, clip: Clip | None, kind: str, model: str, event: gr.SelectData) -> list[Any]:
        if clip is not None and clip.followed:  # the page shows another frame than the first
            return [gr.skip() for _ in outputs]
        x, y = event.index
        return update(session, clip, model, lambda: session.click(x, y, kind))

    def on_clear(session: Session, clip: Clip | None, model: str) -> list[Any]:
        if clip is not None:
            clip.discard()
        return update(session, clip, model, session.clear)

    def on_switch(session: Session, clip: Clip | None, model: str) -> list[Any]:
        if clip is not None:
            clip.discard()
        return update(session, clip, model, lambda: session)

    def on_follow(session: Session, clip: Clip | None, fixed: bool) -> Iterator[list[Any]]:
        mask = session.mask()
        before: Step | None = None
        with TemporaryDirectory() as folder:
            try:
                if clip is None or mask is None:
                    raise InvalidInputError(
                        "there is no mask, or the session has expired: give the clip again and click on it."
                    )
                running = gr.Button(interactive=False), gr.Button(interactive=True)
                for step in clip.follow(demo, session, mask, fixed, Path(folder)):
                    if clip.discarded:
                        continue
                    # An image that it has shown gradio writes anew, and cuts short what a browser is reading.
                    same = before is not None and np.array_equal(before.image, step.image)
                    yield [gr.skip() if same else step.image, step.text, *running, *_no_files()]
                    before = step
            except GroupMixSamError as e:
                gr.Warning(str(e))
            if clip is not None and clip.discarded:
                return
            if before is None:
                yield show(session, clip)[2:]
                return
            written = [gr.DownloadButton(value=path, interactive=True) for path in sorted(Path(folder).iterdir())]
            ended = gr.Button(interactive=True), gr.Button(interactive=False)
            yield [gr.skip(), gr.skip(), *ended, *written]

    def on_stop(clip: Clip | None) -> None:
        if clip is not None:
            clip.stopped = True

    def listen(event: Any, action: Callable[..., Any], inputs: list[Any], **options: Any) -> None:
        """One queue: as in the Image tab, but that a clip that is followed leaves room for others' clicks."""
        event(
            action,
            inputs,
            concurrency_limit=1,
            api_visibility="private",
            show_progress="minimal",
            show_progress_on=[frame],
            **{"outputs": outputs, "concurrency_id": "demo", **options},
        )

    # Unprocessed: gradio would convert the clip itself, with an ffmpeg that may not be there.
    listen(video.change, on_open, [video, clip, model], preprocess=False)
    listen(frame.select, on_click, [session, clip, kind, model])
    listen(clear.click, on_clear, [session, clip, model])
    listen(model.input, on_switch, [session, clip, model])
    # Without the states, which another clip may have by then.
    listen(follow.click, on_follow, [session, clip, fixed], outputs=outputs[2:], concurrency_id="follow")
    stop.click(on_stop, clip, None, queue=False, api_visibility="private")


def _no_files() -> list[Any]:
    return [gr.DownloadButton(interactive=False), gr.DownloadButton(interactive=False)]
