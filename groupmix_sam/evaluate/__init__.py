"""Evaluation: masks compared with labels or with a reference model's masks, by a protocol that the result records."""

from ..prompts import Prompt, read_prompts
from .dataset import LabelledDataset
from .models import Model, load_model
from .protocol import PRESETS, Protocol, preset
from .reference import ReferenceDataset
from .results import Result, load_result
from .runner import Task, evaluate
from .summary import Comparison, Figure, compare, compare_text, summarize, summary_text

__all__ = [
    "PRESETS",
    "Comparison",
    "Figure",
    "LabelledDataset",
    "Model",
    "Prompt",
    "Protocol",
    "ReferenceDataset",
    "Result",
    "Task",
    "compare",
    "compare_text",
    "evaluate",
    "load_model",
    "load_result",
    "preset",
    "read_prompts",
    "summarize",
    "summary_text",
]
