"""The number of threads: who decides, what is refused, and whom a block concerns."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnfast import get_num_threads, set_num_threads, threads

# In the package the name is the context manager's.
module = sys.modules["cnnfast.threads"]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing set, by calls or by the environment; afterwards as before."""
    monkeypatch.delenv("CNNFAST_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "_process", None)
    module._default.cache_clear()
    yield
    module._default.cache_clear()


def test_setting_and_getting() -> None:
    set_num_threads(3)
    assert get_num_threads() == 3
    set_num_threads(np.int64(1))
    assert get_num_threads() == 1
    assert type(get_num_threads()) is int


@pytest.mark.parametrize("set_or_open", [set_num_threads, lambda n: threads(n).__enter__()])
@pytest.mark.parametrize("n", [0, -1, np.int32(0)])
def test_a_number_below_one_is_refused(set_or_open: Any, n: Any) -> None:
    before = get_num_threads()
    with pytest.raises(ValueError, match=r"threads: n must be at least 1, not (0|-1)$"):
        set_or_open(n)
    assert get_num_threads() == before


@pytest.mark.parametrize("set_or_open", [set_num_threads, lambda n: threads(n).__enter__()])
@pytest.mark.parametrize("n", [2.0, "2", None, True, [2]])
def test_what_is_no_integer_is_refused(set_or_open: Any, n: Any) -> None:
    with pytest.raises(TypeError, match=r"threads: n must be an integer, not "):
        set_or_open(n)


def test_blocks_nest_and_end() -> None:
    set_num_threads(5)
    with threads(2):
        with threads(7):
            assert get_num_threads() == 7
        assert get_num_threads() == 2
        set_num_threads(6)
        assert get_num_threads() == 2
    assert get_num_threads() == 6


def test_a_block_ends_with_an_exception() -> None:
    before = get_num_threads()
    with pytest.raises(KeyError), threads(before + 1):
        raise KeyError
    assert get_num_threads() == before


def test_a_block_concerns_its_own_thread_and_a_setting_all() -> None:
    set_num_threads(4)
    together = threading.Barrier(8, timeout=20)

    def work(n: int) -> list[int]:
        seen = [get_num_threads()]
        with threads(n):
            together.wait()
            seen.append(get_num_threads())
            together.wait()
        seen.append(get_num_threads())
        return seen

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(11, 19)))
    assert found == [[4, n, 4] for n in range(11, 19)]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"CNNFAST_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "6,3,2"}, 6),
        ({"CNNFAST_NUM_THREADS": " 3 ", "OMP_NUM_THREADS": "5"}, 3),
        ({"CNNFAST_NUM_THREADS": "", "OMP_NUM_THREADS": "5"}, 5),
        ({"CNNFAST_NUM_THREADS": "3", "OMP_NUM_THREADS": "nonsense"}, 3),
    ],
)
def test_the_environment_decides_the_default(
    environment: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert get_num_threads() == expected
    set_num_threads(9)
    assert get_num_threads() == 9


@pytest.mark.parametrize("name", ["CNNFAST_NUM_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("value", ["0", "-2", "two", "1.5", "²", "0x4", ","])
def test_a_bad_environment_variable_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{name}: expected a positive integer, not '{value}'"):
        get_num_threads()
    set_num_threads(2)
    assert get_num_threads() == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_the_affinity_mask_limits_the_default() -> None:
    mask = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mask)})
        assert get_num_threads() == 1
    finally:
        os.sched_setaffinity(0, mask)


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, 8), (0.5, 1), (1.0, 1), (2.5, 3), (64.0, 8)]
)
def test_the_quota_limits_the_default(
    quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_affinity", lambda: 8)
    monkeypatch.setattr(module, "_quota", lambda root: quota)
    assert get_num_threads() == expected


V2_MOUNT = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct"
# Docker with control groups of version 1: the container's group is the top of the mount.
V1_CONTAINER = (
    "33 30 0:29 /docker/4f2a /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct"
)
OTHERS = """\
25 1 8:1 / / rw - ext4 /dev/sda1 rw
40 30 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"""


def system(root: Path, group: str, mount: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"7:memory:/elsewhere\n{group}\n")
    (root / "proc/self/mountinfo").write_text(f"{OTHERS}\n{mount}\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("group", "mount", "files", "expected"),
    [
        ("0::/user/job", V2_MOUNT, {"user/job/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/user/job", V2_MOUNT, {"user/job/cpu.max": "max 100000\n"}, None),
        (
            "0::/user/job",
            V2_MOUNT,
            {"user/job/cpu.max": "800000 100000\n", "user/cpu.max": "200000 100000\n"},
            2.0,
        ),
        ("0::/", V2_MOUNT, {"cpu.max": "50000 100000\n"}, 0.5),
        # a path that this namespace does not show
        ("0::/../../host/job", V2_MOUNT, {"cpu.max": "300000 100000\n"}, 3.0),
        ("0::/user/job", V2_MOUNT, {}, None),
        ("0::/user/job", V2_MOUNT, {"user/job/cpu.max": "nonsense\n"}, None),
        (
            "4:cpu,cpuacct:/job",
            V1_MOUNT,
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "250000\n",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            "4:cpu,cpuacct:/job",
            V1_MOUNT,
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        (
            "4:cpu,cpuacct:/docker/4f2a",
            V1_CONTAINER,
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4.0,
        ),
    ],
)
def test_the_quota_of_control_groups(
    group: str, mount: str, files: dict[str, str], expected: float | None, tmp_path: Path
) -> None:
    assert module._quota(system(tmp_path, group, mount, files)) == expected


def test_no_control_groups(tmp_path: Path) -> None:
    assert module._quota(tmp_path) is None
