"""A page to try models in a browser: what it does (`session`) and how it looks (`page`, which needs gradio)."""

from .session import Answer, Click, Demo, Session

__all__ = ["Answer", "Click", "Demo", "Session"]
