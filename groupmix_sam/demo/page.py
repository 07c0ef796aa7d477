"""The demo page: its tabs, and the server."""

import errno
import socket

from ..errors import InvalidInputError, MissingExtraError
from .session import Demo, Session

try:
    import gradio as gr
except ImportError as e:
    raise MissingExtraError.of("gradio", "demo") from e

from .adapter import Adapter
from .image_tab import image_tab
from .video_tab import video_tab

__all__ = ["build", "free_port", "serve"]

MAX_FILE_SIZE = "40mb"
# A session holds an image, its masks and one embedding per model: a few hundred MB for the largest image.
MAX_SESSIONS = 8
SESSION_SECONDS = 1800
# Waiting visitors; others see that the page is busy.
MAX_QUEUE = 16
PORTS = 100

EXPLANATION = """# Group-Mix SAM
Click on an instance in an image and get its mask. Images stay on the machine that this page runs on."""
CSS = """
#masks .wrap { flex-wrap: nowrap; }
#masks label { padding: 0.4rem 0.5rem; flex: 1; white-space: nowrap; }
:is(#legend, #times) .html-container { padding: 0; }
.legend { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; font-size: 0.9rem; }
.legend i { display: inline-block; width: 0.85rem; height: 0.85rem; margin-right: 0.4rem; vertical-align: -0.1rem; }
.legend .dot { border-radius: 50%; border: 2px solid white; box-shadow: 0 0 0 1px gray; }
.legend .frame { border: 2px solid white; box-shadow: 0 0 0 1px gray, inset 0 0 0 1px gray; }
.legend .mask { background: rgb(0 158 115 / 50%); border: 1px solid rgb(0, 158, 115); }
.times { font-size: 0.9rem; font-variant-numeric: tabular-nums; }
.times dt { font-weight: 600; overflow-wrap: anywhere; }
.times dd { margin: 0 0 0.6rem; }
"""


def build(demo: Demo, start: Session | None = None, adapter: Adapter | None = None) -> gr.Blocks:
    """Return the page.

    Args:
        demo: The models.
        start: The session that visitors begin with; by default an empty one.
        adapter: What saves masks as labels and adapts to them; by default the page has no buttons for it.
    """
    page = gr.Blocks(title="Group-Mix SAM", analytics_enabled=False, delete_cache=(600, SESSION_SECONDS))
    with page:
        gr.Markdown(EXPLANATION)
        with gr.Tab("Image"):
            image_tab(page, demo, start, SESSION_SECONDS, adapter)
        with gr.Tab("Video"):
            video_tab(demo, SESSION_SECONDS)
    page.queue(max_size=MAX_QUEUE, api_open=False)
    return page


def serve(page: gr.Blocks, host: str, port: int) -> None:
    """Start the server and return; `page.block_thread()` then waits for Ctrl-C."""
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        show_error=False,
        inline=False,
        ssr_mode=False,
        max_file_size=MAX_FILE_SIZE,
        state_session_capacity=MAX_SESSIONS,
        enable_monitoring=False,
        footer_links=[],
        css=CSS,
        # Fonts of the visitor's own system, so that none is fetched.
        theme=gr.themes.Default(
            primary_hue="emerald", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
    )


def free_port(host: str, port: int) -> int:
    """Return the first free port from `port` on.

    Raises:
        InvalidInputError: the host cannot be listened at, or none of a hundred ports is free.
    """
    for candidate in range(port, min(port + PORTS, 65536)):
        try:
            with socket.create_server((host, candidate)):
                return candidate
        except OSError as e:
            if e.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise InvalidInputError(
                    f"cannot listen at {host}:{candidate} ({e}): give a --host that is an IPv4 address of this machine."
                ) from e
    raise InvalidInputError(f"no port from {port} to {port + PORTS - 1} is free at {host}: give another --port.")
