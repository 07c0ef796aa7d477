"""A fake of TensorRT, for machines without a GPU: it records how it is called, and its plans multiply by two.

It checks what TensorRT's documentation asks for. A class `FakeX` stands for TensorRT's X, with X's own signatures, to which
`test_the_fake_against_the_bindings` holds it; what it does proves nothing about what TensorRT does.
"""

# ruff: noqa: F821  TensorRT's types are not here

from __future__ import annotations

import ctypes
import types
from pathlib import Path

import numpy as np

BUILT = []  # the network and the config of every plan, for tests to look at


class FakeITimingCache:
    def __init__(self, data):
        self._data = data

    def serialize(self) -> IHostMemory:
        return self._data + b"+timed"


class FakeIBuilderConfig:
    def __init__(self):
        self._profiles = []

    def create_timing_cache(self, serialized_timing_cache: Buffer) -> ITimingCache:
        return FakeITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        return self._cache

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1


class FakeIOptimizationProfile:
    def __init__(self):
        self._shapes = {}

    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None:  # noqa: A002
        assert all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True))
        self._shapes[input] = (min, opt, max)


class FakeBuilder:
    def __init__(self, logger: ILogger) -> None:
        pass

    def create_network(self, flags: int) -> INetworkDefinition:
        return types.SimpleNamespace(flags=flags)

    def create_builder_config(self) -> IBuilderConfig:
        return FakeIBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return FakeIOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory:
        BUILT.append((network, config))
        return None if "refused" in network.path else b"plan of " + network.path.encode()


class FakeOnnxParser:
    num_errors = 1

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network

    def parse_from_file(self, model: str) -> bool:
        self._network.path = model
        return Path(model).stem != "unparsed"

    def get_error(self, index: int) -> IParserError:
        return f"error {index}"


class FakeIExecutionContext:
    """Runs y = 2 x on the memory that the addresses point to."""

    def __init__(self):
        self._shapes, self._addresses = {}, {}

    def set_input_shape(self, name: str, shape: tuple) -> bool:
        self._shapes[name] = shape
        return max(shape) <= 64

    def get_tensor_shape(self, name: str) -> Dims:
        return self._shapes["x"]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        size = int(np.prod(self._shapes["x"]))
        x, y = (np.ctypeslib.as_array((ctypes.c_float * size).from_address(self._addresses[n])) for n in "xy")
        y[:] = 2 * x
        return True


class FakeICudaEngine:
    num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return FakeTensorIOMode.INPUT if name == "x" else FakeTensorIOMode.OUTPUT

    def create_execution_context(self) -> IExecutionContext:
        return FakeIExecutionContext()


class FakeRuntime:
    def __init__(self, logger: ILogger) -> None:
        pass

    def deserialize_cuda_engine(self, serialized_engine: Buffer) -> ICudaEngine:
        return FakeICudaEngine() if serialized_engine == b"fake plan" else None


class FakeLogger:
    WARNING = 2

    def __init__(self, min_severity: Severity) -> None:
        pass


class FakeTensorIOMode:
    INPUT, OUTPUT = 1, 2


def fake(version):
    """Return a module as TensorRT 10 or 11 has it."""
    return types.SimpleNamespace(
        __version__=f"{version}.0-fake",
        Builder=FakeBuilder,
        Logger=FakeLogger,
        # EXPLICIT_BATCH came first.
        NetworkDefinitionCreationFlag=types.SimpleNamespace(STRONGLY_TYPED=1 if version < 11 else 0),
        OnnxParser=FakeOnnxParser,
        Runtime=FakeRuntime,
        TensorIOMode=FakeTensorIOMode,
    )
