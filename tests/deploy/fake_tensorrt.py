"""A fake of TensorRT, for machines without a GPU: it records how it is called, and its plans multiply by two.

It checks what TensorRT's documentation asks for, and proves nothing about TensorRT itself.
"""

import ctypes
import types
from pathlib import Path

import numpy as np


class FakeCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return self.data + b"+timed"


class FakeConfig:
    def __init__(self):
        self.profiles = []

    def create_timing_cache(self, data):
        return FakeCache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache

    def get_timing_cache(self):
        return self.cache

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)


class FakeProfile(dict):
    def set_shape(self, name, least, usual, largest):
        assert all(a <= b <= c for a, b, c in zip(least, usual, largest, strict=True))
        self[name] = (least, usual, largest)


class FakeBuilder:
    built = []  # noqa: RUF012  of every builder, for tests to look at

    def __init__(self, logger):
        pass

    def create_network(self, flags):
        return types.SimpleNamespace(flags=flags)

    def create_builder_config(self):
        return FakeConfig()

    def create_optimization_profile(self):
        return FakeProfile()

    def build_serialized_network(self, network, config):
        self.built.append((network, config))
        return None if "refused" in network.path else b"plan of " + network.path.encode()


class FakeParser:
    num_errors = 1

    def __init__(self, network, logger):
        self.network = network

    def parse_from_file(self, path):
        self.network.path = path
        return Path(path).stem != "unparsed"

    def get_error(self, i):
        return f"error {i}"


class FakeContext:
    """Runs y = 2 x on the memory that the addresses point to."""

    def __init__(self):
        self.shapes, self.addresses = {}, {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return max(shape) <= 64

    def get_tensor_shape(self, name):
        return self.shapes["x"]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        size = int(np.prod(self.shapes["x"]))
        x, y = (np.ctypeslib.as_array((ctypes.c_float * size).from_address(self.addresses[n])) for n in "xy")
        y[:] = 2 * x
        return True


class FakeEngine:
    num_io_tensors = 2

    def get_tensor_name(self, i):
        return "xy"[i]

    def get_tensor_mode(self, name):
        return "input" if name == "x" else "output"

    def create_execution_context(self):
        return FakeContext()


class FakeRuntime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, data):
        return FakeEngine() if data == b"fake plan" else None


class FakeLogger:
    WARNING = 2

    def __init__(self, level):
        pass


def fake(version):
    """Return a module as TensorRT 10 or 11 has it."""
    flags = types.SimpleNamespace(STRONGLY_TYPED=1) if version < 11 else types.SimpleNamespace()
    return types.SimpleNamespace(
        __version__=f"{version}.0-fake",
        Builder=FakeBuilder,
        Logger=FakeLogger,
        NetworkDefinitionCreationFlag=flags,
        OnnxParser=FakeParser,
        Runtime=FakeRuntime,
        TensorIOMode=types.SimpleNamespace(INPUT="input", OUTPUT="output"),
    )
