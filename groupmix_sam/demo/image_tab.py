"""The page's Image tab: gradio's components around a `Session`."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..errors import GroupMixSamError, InvalidInputError
from .adapter import Adapter
from .label_panel import LabelPanel
from .session import NOTHING, Demo, Session

__all__ = ["HEIGHT", "KINDS", "LEGEND", "hint_text", "image_tab", "upload_path"]

KINDS = [("a foreground point", "foreground"), ("a background point", "background"), ("a box's corner", "corner")]
HEIGHT = "56vh"
LEGEND = """<div class="legend">
<span><i class="dot" style="background: rgb(40, 200, 40)"></i>foreground: what you want</span>
<span><i class="dot" style="background: rgb(220, 40, 40)"></i>background: what you do not want</span>
<span><i class="frame"></i>box</span>
<span><i class="mask"></i>mask</span>
</div>"""
# Saves what the server has just written, under a name of its own.
SAVE = """async (file) => {{
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await (await fetch(file.url)).blob());
    link.download = "{}";
    link.click();
    URL.revokeObjectURL(link.href);
}}"""


def image_tab(
    page: gr.Blocks, demo: Demo, start: Session | None, session_seconds: float, adapter: Adapter | None = None
) -> None:
    """Add the tab to the page that is being built.

    Args:
        page: The page.
        demo: The models.
        start: The session that visitors begin with; by default an empty one.
        session_seconds: How long a visitor's session is kept.
        adapter: What saves masks as labels and adapts to them; by default there are no buttons for it.
    """
    session = gr.State(Session(), time_to_live=session_seconds)
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            with gr.Row():
                image = gr.Image(
                    label="Image",
                    sources=["upload", "webcam", "clipboard"],
                    format="jpeg",
                    height=HEIGHT,
                    buttons=["fullscreen"],
                    placeholder="# Drop an image here\nor click to choose a file",
                    elem_id="image",
                )
                beside = gr.Image(
                    format="jpeg",
                    height=f"calc({HEIGHT} - 40px)",  # without the other's row of sources
                    buttons=["fullscreen"],
                    interactive=False,
                    visible=False,
                    elem_id="beside",
                )
            hint = gr.Markdown(elem_id="hint")
            gr.HTML(LEGEND, padding=False, elem_id="legend")
        with gr.Column(scale=2, min_width=300):
            model = gr.Dropdown(list(demo.models), value=demo.models[0], label="Model", elem_id="model")
            several = len(demo.compared) > 1
            compare = gr.Dropdown(
                [NOTHING, *demo.compared], value=NOTHING[1], label="Compare with", visible=several, elem_id="compare"
            )
            kind = gr.Radio(KINDS, value="foreground", label="A click sets", elem_id="kind")
            with gr.Row():
                undo = gr.Button("Undo", size="sm", min_width=80, elem_id="undo")
                clear = gr.Button("Clear", size="sm", min_width=80, elem_id="clear")
            masks = gr.Radio([], label="Masks, with their scores", visible=False, elem_id="masks")
            with gr.Row():
                save_mask = gr.Button("Save mask", size="sm", min_width=80, interactive=False, elem_id="save-mask")
                save_overlay = gr.Button("Save overlay", size="sm", min_width=80, interactive=False, elem_id="save-overlay")
            panel = None if adapter is None else LabelPanel(adapter, session_seconds)
            times = gr.HTML(padding=False, elem_id="times")
    written = gr.Image(format="png", interactive=False, visible="hidden")

    outputs = [session, image, beside, hint, masks, times, save_mask, save_overlay, *([] if panel is None else panel.shown)]

    def update(session: Session, model: str, compare: str, action: Callable[[], Session]) -> list[Any]:
        """Do a visitor's action and return what the page shows then; an error is shown and changes nothing."""
        other = compare if compare not in (NOTHING[1], model) else None
        try:
            session = demo.predict(action(), model, other)
        except GroupMixSamError as e:
            gr.Warning(str(e))
        return [session, *show(session, other), *([] if panel is None else panel.show(session))]

    def on_open(file: dict[str, Any] | None, session: Session, model: str, compare: str) -> list[Any]:
        return update(session, model, compare, lambda: demo.open(upload_path(file)))

    def on_click(session: Session, kind: str, model: str, compare: str, event: gr.SelectData) -> list[Any]:
        x, y = event.index
        return update(session, model, compare, lambda: session.click(x, y, kind))

    def on_undo(session: Session, model: str, compare: str) -> list[Any]:
        return update(session, model, compare, session.undo)

    def on_clear(session: Session, model: str, compare: str) -> list[Any]:
        return update(session, model, compare, session.clear)

    def on_choose(session: Session, number: int, model: str, compare: str) -> list[Any]:
        return update(session, model, compare, lambda: session.choose(number))

    def on_switch(session: Session, model: str, compare: str) -> list[Any]:
        return update(session, model, compare, lambda: session)

    def on_remove(model: str) -> list[Any]:
        return update(Session(), model, NOTHING[1], Session)

    def on_start(model: str) -> list[Any]:
        return update(Session(), model, NOTHING[1], lambda: start or Session())

    # One queue: visitors' images are computed one after the other.
    def listen(event: Any, action: Callable[..., list[Any]], inputs: list[Any], **options: Any) -> None:
        event(
            action,
            inputs,
            outputs,
            concurrency_id="demo",
            concurrency_limit=1,
            api_visibility="private",
            show_progress="minimal",
            show_progress_on=[image],
            **options,
        )

    # Unprocessed: gradio would open the image itself, and fail on a broken one in silence.
    listen(image.input, on_open, [image, session, model, compare], preprocess=False)
    listen(image.clear, on_remove, [model])
    listen(image.select, on_click, [session, kind, model, compare])
    listen(undo.click, on_undo, [session, model, compare])
    listen(clear.click, on_clear, [session, model, compare])
    listen(masks.input, on_choose, [session, masks, model, compare])
    listen(model.change, on_switch, [session, model, compare])
    listen(compare.input, on_switch, [session, model, compare])
    listen(page.load, on_start, [model])
    if panel is not None:
        panel.connect(page, session, model, compare)
    for button, write, name in ((save_mask, mask_image, "mask.png"), (save_overlay, overlay_image, "overlay.png")):
        saved = button.click(
            write, session, written, concurrency_id="demo", api_visibility="private", show_progress_on=[button]
        )
        saved.success(None, written, None, js=SAVE.format(name), api_visibility="private")


def show(session: Session, compare: str | None = None) -> list[Any]:
    """Return the values of the components that show a session, in the order of `image_tab`'s outputs."""
    answer = session.answer
    choices = [] if answer is None else [(f"{i + 1}: {score:.2f}", i) for i, score in enumerate(answer.scores)]
    return [
        session.draw(),
        gr.Image(
            value=session.draw(compare) if compare else None,
            label=compare or "",
            visible=compare is not None and session.image is not None,
        ),
        hint_text(session, compare),
        gr.Radio(choices=choices, value=session.chosen if choices else None, visible=bool(choices)),
        times_list(session),
        gr.Button(interactive=answer is not None),
        gr.Button(interactive=answer is not None),
    ]


def hint_text(session: Session, compare: str | None = None) -> str:
    """Return what the page says: the state, or what to do next."""
    if session.image is None:
        return "Start with an image: drop it, choose a file, or take one with the camera."
    height, width = session.image.shape[:2]
    if session.corner:
        return f"Corner at {session.corner.x:.0f}, {session.corner.y:.0f}: click the opposite one."
    mask = session.mask()
    if mask is None:
        return f"{width} x {height} pixels. Click on what you want."
    text = f"The mask covers {100 * mask.mean():.1f} % of {width} x {height} pixels."
    iou = session.compared_iou(compare) if compare else None
    return text if iou is None else f"{text} IoU with the mask of {compare}: **{iou:.3f}**"


def times_list(session: Session) -> str:
    """Return the encoder's and decoder's times of each model that was run on the image, as HTML."""
    lines = []
    for name, embedding in session.embeddings.items():
        answer = session.answers.get(name)
        decoder = "" if answer is None else f", decoder {1000 * answer.seconds:.0f} ms each click"
        lines.append(f"<dt>{escape(name)}</dt><dd>encoder {1000 * embedding.seconds:.0f} ms once an image{decoder}</dd>")
    return f'<dl class="times">{"".join(lines)}</dl>'


def mask_image(session: Session) -> Image.Image | None:
    """Return the mask in the image's size, 255 inside and 0 outside."""
    mask = session.mask()
    return None if mask is None else Image.fromarray(mask).convert("L")


def overlay_image(session: Session) -> Image.Image | None:
    """Return the image with the mask and the clicks, in full size."""
    return session.draw(full=True)


def upload_path(file: dict[str, Any] | None) -> Path:
    """Return the path of an upload, which gradio takes from its own folder alone."""
    if not file or not file.get("path"):
        raise InvalidInputError("the upload has no image: try again.")
    return Path(file["path"])
