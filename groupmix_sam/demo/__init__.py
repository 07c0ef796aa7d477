"""The demo in a browser: its logic (`session`) and its page (`page`, which needs gradio)."""

from .session import Answer, Click, Demo, Session

__all__ = ["Answer", "Click", "Demo", "Session"]
