"""Group-Mix SAM (arXiv 2403.10053): Segment Anything with a GroupMixFormer encoder, for timm and segment-anything.

Importing this package registers its encoders in timm and imports nothing heavier than torch and timm.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

# The command line starts without them, see there.
if not getattr(sys.modules.get("groupmix_sam_cli"), "starting", False):
    from . import encoders

if TYPE_CHECKING:
    from .sam import build_sam_groupmix, sam_model_registry
    from .weights import push_to_hub, save_pretrained

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "build_sam_groupmix",
    "encoders",
    "push_to_hub",
    "sam_model_registry",
    "save_pretrained",
]

# segment-anything is imported when one of these is first used.
_LAZY = {
    "build_sam_groupmix": "sam",
    "push_to_hub": "weights",
    "sam_model_registry": "sam",
    "save_pretrained": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
