"""ONNX Runtime as a backend."""

from collections.abc import Sequence
from pathlib import Path

from ...errors import RuntimeUnavailableError, import_extra
from .base import Array, input_refused

__all__ = ["OnnxBackend"]


class OnnxBackend:
    """An ONNX file in ONNX Runtime.

    Args:
        path: The file.
        providers: ONNX Runtime's execution providers, the best first; every one of them must load.
        threads: For one operation; None leaves it to ONNX Runtime.

    Raises:
        MissingExtraError: there is no onnxruntime.
        RuntimeUnavailableError: a provider is not there or did not load, or the file cannot be read.
    """

    def __init__(self, path: Path, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int | None = None) -> None:
        ort = import_extra("onnxruntime", "onnx")
        known = ort.get_available_providers()
        missing = [name for name in providers if name not in known]
        if missing:
            raise RuntimeUnavailableError(
                f"this onnxruntime has no {', '.join(missing)}, only {', '.join(known)}: "
                "install onnxruntime-gpu for NVIDIA's, or ask for one of these."
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Each model has threads of its own. After a run they would spin, waiting for the next, on the cores that another needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = ort.InferenceSession(str(path), options, providers=list(providers))
        except Exception as e:  # ONNX Runtime's errors have no base of their own
            raise RuntimeUnavailableError(f"ONNX Runtime does not load {path} ({e}): export it again.") from e
        # Providers that are listed but find no device are dropped without an error.
        lost = [name for name in providers if name not in self.session.get_providers()]
        if lost:
            raise RuntimeUnavailableError(
                f"{', '.join(lost)} did not load, and ONNX Runtime would run on {self.session.get_providers()[0]} instead: "
                "check the driver and its libraries, or ask for that provider."
            )
        self.names = [value.name for value in self.session.get_inputs()]

    def __call__(self, *inputs: Array) -> list[Array]:
        try:
            return list(self.session.run(None, dict(zip(self.names, inputs, strict=True))))
        except Exception as e:
            raise input_refused(inputs, e) from e
