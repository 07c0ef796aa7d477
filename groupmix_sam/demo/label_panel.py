"""The Image tab's part for labels: save masks, adapt a model to them, and compare before and after."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from ..errors import GroupMixSamError
from .adapter import Adapter
from .session import NOTHING, Session

__all__ = ["LabelPanel"]

POLL_SECONDS = 1.0


class LabelPanel:
    """Adds the components where the page is being built.

    Args:
        adapter: What saves and adapts.
        session_seconds: How long a visitor's state is kept.
    """

    def __init__(self, adapter: Adapter, session_seconds: float) -> None:
        self.adapter = adapter
        with gr.Group(elem_id="labels"):
            self.count = gr.Markdown(elem_id="label-count", padding=True)
            with gr.Row():
                self.save = gr.Button("Save as label", size="sm", min_width=80, interactive=False, elem_id="save-label")
                self.remove = gr.Button("Remove labels", size="sm", min_width=80, interactive=False, elem_id="remove-labels")
            with gr.Row():
                self.adapt = gr.Button("Adapt now", size="sm", min_width=80, variant="primary", elem_id="adapt")
                self.stop = gr.Button("Stop", size="sm", min_width=80, interactive=False, elem_id="stop-adapt")
            self.state = gr.Markdown(elem_id="adapt-state", padding=True)
        self.seen = gr.State(0, time_to_live=session_seconds)
        self.timer = gr.Timer(POLL_SECONDS, active=False)

    @property
    def shown(self) -> list[Any]:
        """The components that `show` has values for."""
        return [self.count, self.save, self.remove]

    def show(self, session: Session) -> list[Any]:
        """Return the values of what a session changes."""
        labels, images = self.adapter.labels.count()
        text, here = f"Labels: **{labels}**, on {images} images.", 0
        if session.image is not None:
            here, _ = self.adapter.labels.count(session.image)
            text = f"Labels on this image: **{here}**; in all {labels}, on {images} images."
        return [text, gr.Button(interactive=session.answer is not None), gr.Button(interactive=bool(here))]

    def connect(self, page: gr.Blocks, session: gr.State, model: gr.Dropdown, compare: gr.Dropdown) -> None:
        """Make the components work.

        Args:
            page: The page.
            session: Its session.
            model: What is adapted. It becomes the adapted model.
            compare: Becomes the model before.
        """
        adapter = self.adapter
        progress = [self.timer, self.adapt, self.stop, self.state]

        def change(session: Session, action: Callable[[], None]) -> list[Any]:
            try:
                action()
            except GroupMixSamError as e:
                gr.Warning(str(e))
            return self.show(session)

        def on_save(session: Session) -> list[Any]:
            image, mask = session.image, session.mask()
            if image is None or mask is None:
                gr.Warning("there is no mask, or the session has expired: give the image again and click on it.")
                return self.show(session)
            return change(session, lambda: adapter.labels.save(image, mask))

        def on_remove(session: Session) -> list[Any]:
            image = session.image
            return self.show(session) if image is None else change(session, lambda: adapter.labels.remove(image))

        def state() -> list[Any]:
            running = adapter.running
            buttons = gr.Button(interactive=not running), gr.Button(interactive=running)
            return [gr.Timer(active=running), *buttons, adapter.text()]

        def on_adapt(model: str) -> list[Any]:
            try:
                adapter.start(model)
            except GroupMixSamError as e:
                gr.Warning(str(e))
            return state()

        def on_stop() -> list[Any]:
            adapter.stop()
            return state()

        def on_tick(seen: int) -> list[Any]:
            now = state()  # before the list is read: it is longer once nothing runs
            count = len(adapter.finished)
            if count == seen:
                return [seen, *now, gr.skip(), gr.skip()]
            latest = adapter.finished[-1]
            return [
                count,
                *now,
                gr.Dropdown(choices=list(adapter.demo.models), value=latest.after),
                gr.Dropdown(choices=[NOTHING, *adapter.demo.compared], value=latest.before, visible=True),
            ]

        def on_load() -> list[Any]:
            others: list[Any] = [NOTHING, *adapter.demo.compared]
            choices = gr.Dropdown(choices=list(adapter.demo.models)), gr.Dropdown(choices=others, visible=len(others) > 2)
            return [len(adapter.finished), *state(), *choices]

        options: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "labels", "concurrency_limit": 1}
        self.save.click(on_save, session, self.shown, **options)
        self.remove.click(on_remove, session, self.shown, **options)
        self.adapt.click(on_adapt, model, progress, **options)
        self.stop.click(on_stop, None, progress, **options)
        self.timer.tick(on_tick, self.seen, [self.seen, *progress, model, compare], show_progress="hidden", **options)
        page.load(on_load, None, [self.seen, *progress, model, compare], **options)
