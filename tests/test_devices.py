"""Devices by name, and threads by what a machine, a container and the user allow."""

import os
from types import SimpleNamespace

import pytest
import torch

from groupmix_sam import devices
from groupmix_sam.devices import find_device, find_threads, free_memory, usable_cpus, use_threads
from groupmix_sam.errors import InvalidInputError, RuntimeUnavailableError


@pytest.mark.parametrize(
    ("gpus", "mps", "rank", "expected"),
    [
        (0, False, None, "cpu"),
        (0, True, None, "mps"),
        (2, False, None, "cuda:0"),
        (2, True, "1", "cuda:1"),
        (2, False, "3", "cuda:1"),
    ],
    ids=["a CPU", "a Mac", "GPUs", "a process of torchrun's", "more processes than GPUs"],
)
def test_auto(monkeypatch, gpus, mps, rank, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: None)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert find_device("auto") == torch.device(expected)


@pytest.mark.parametrize("name", ["cuda:99", "nowhere", "GPU"])
def test_devices_that_are_not_there(name):
    with pytest.raises(RuntimeUnavailableError, match=f"the device '{name}' cannot be used .*: use 'auto' or 'cpu'"):
        find_device(name)


def test_free_memory(monkeypatch):
    """Of a GPU what the driver has left, and what PyTorch holds and does not use."""
    assert free_memory(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert free_memory(torch.device("cuda")) == 1300
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 7000)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 3000)
    assert free_memory(torch.device("mps")) == 4000


def machine(root, groups, files):
    """Write a machine's /proc/self/cgroup and files of its cgroups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        (root / "sys/fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / name).write_text(content)
    return root


V1 = "4:memory:/docker/1a\n3:cpu,cpuacct:/docker/1a\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "3200000 100000\n"}, 16),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "500000 100000\n"}, 3),
        ("0::/outside\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {}, 16),
        ("0::/\n", {"cpu.max": "nonsense"}, 16),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        (V1, {"cpu/docker/1a/cpu.cfs_quota_us": "50000\n", "cpu/docker/1a/cpu.cfs_period_us": "10000\n"}, 5),
        (V1, {"cpu/cpu.cfs_quota_us": "600000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
    ],
    ids=[
        "no quota",
        "two",
        "two and a half",
        "a tenth",
        "more than there are",
        "a group in a group",
        "a path that is only there outside",
        "no file",
        "nonsense",
        "version 1, no quota",
        "version 1",
        "version 1 in a container",
    ],
)
def test_a_containers_quota(monkeypatch, tmp_path, groups, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert usable_cpus(machine(tmp_path, groups, files)) == expected


def test_affinity_and_machines_without_cgroups(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7}, raising=False)
    assert usable_cpus(tmp_path) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert usable_cpus(tmp_path) == 12


@pytest.mark.parametrize(
    ("asked", "told", "usable", "expected"),
    [
        (3, "5", 2, 3),
        (None, "5", 2, 5),
        (None, "4,2", 2, 4),
        (None, "", 2, 2),
        (None, "0", 2, 2),
        (None, "many", 2, 2),
        (None, None, 2, 2),
        (None, None, 8, None),
    ],
)
def test_one_rule_of_threads(monkeypatch, asked, told, usable, expected):
    """What is asked for, `OMP_NUM_THREADS`, the quota; a machine that is free to use is left to the runtime."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(devices, "usable_cpus", lambda: usable)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert find_threads(asked) == expected


def test_pytorch_keeps_to_the_rule(monkeypatch):
    now = SimpleNamespace(threads=8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: now.threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: setattr(now, "threads", threads))
    monkeypatch.setattr(devices, "usable_cpus", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    use_threads()
    assert now.threads == 4
    now.threads = 2  # the program's own choice
    use_threads()
    assert now.threads == 2
    use_threads(6)
    assert now.threads == 6
    with pytest.raises(InvalidInputError, match="threads is 0: give 1 or more"):
        use_threads(0)
