"""How many threads the compiled code may use.

The number is, in this order: that of the innermost ``with threads(n)`` around the call, the one
given to ``set_num_threads``, the environment variable ``CNNFAST_NUM_THREADS``, the first number in
``OMP_NUM_THREADS``, and the processors that this process may use: those of its affinity mask, but
no more than the quota of its control groups (which is how containers limit a process).

Results do not depend on it. Neither the number nor that promise extends to the matrix products that
the methods ``im2col`` and ``portable`` leave to NumPy: its BLAS has threads of its own
(``OPENBLAS_NUM_THREADS`` for the usual one, or the package threadpoolctl).
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, SupportsIndex

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["get_num_threads", "set_num_threads", "threads"]

# A block belongs to the thread or task that opened it, the setting to the process. Reading and
# replacing one reference is atomic, so neither needs a lock.
_block: ContextVar[int | None] = ContextVar("cnnfast_threads", default=None)
_process: int | None = None


def _checked(function: str, n: SupportsIndex) -> int:
    if isinstance(n, bool):
        raise TypeError(f"{function}: n must be an integer, not {n!r}")
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(
            f"{function}: n must be an integer, not {n!r} of type {type(n).__name__}"
        ) from None
    if count < 1:
        raise ValueError(f"{function}: n must be at least 1, not {count}")
    return count


def set_num_threads(n: SupportsIndex) -> None:
    """Set the number of threads for the whole process.

    Inside ``with threads(m)`` the block's number stays in force until the block ends.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError
        `n` is no integer.
    ValueError
        `n` is less than 1.

    Examples
    --------
    >>> import cnnfast
    >>> before = cnnfast.get_num_threads()
    >>> cnnfast.set_num_threads(2)
    >>> cnnfast.get_num_threads()
    2
    >>> cnnfast.set_num_threads(before)
    """
    global _process
    _process = _checked("set_num_threads", n)


def get_num_threads() -> int:
    """Return the number of threads that a call from here would use.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    ValueError
        Nothing was set, and an environment variable that decides then holds no positive integer.

    Examples
    --------
    >>> import cnnfast
    >>> cnnfast.get_num_threads() >= 1
    True
    """
    count = _block.get()
    if count is None:
        count = _process
    return _default() if count is None else count


@contextmanager
def threads(n: SupportsIndex) -> Iterator[None]:
    """Use `n` threads inside a ``with`` block.

    It concerns only the Python thread (or asynchronous task) that runs the block.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    TypeError
        `n` is no integer.
    ValueError
        `n` is less than 1.

    Examples
    --------
    >>> import cnnfast
    >>> with cnnfast.threads(1):
    ...     cnnfast.get_num_threads()
    1
    """
    token = _block.set(_checked("threads", n))
    try:
        yield
    finally:
        _block.reset(token)


@cache
def _default() -> int:
    for name in ("CNNFAST_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "").strip()
        if text:
            # OpenMP allows a list, one number per nesting level.
            first = text.split(",")[0].strip() if name == "OMP_NUM_THREADS" else text
            if not (first.isascii() and first.isdigit() and int(first) > 0):
                raise ValueError(f"{name}: expected a positive integer, not {text!r}")
            return int(first)
    from pathlib import Path  # slow to import, and needed nowhere else

    quota = _quota(Path("/"))
    usable = _affinity()
    return usable if quota is None else max(1, min(usable, math.ceil(quota)))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(root: Path) -> float | None:
    """The processors' worth of time that the control groups of this process allow, None if all.

    `root` is where the system's files are looked for. The formats are those of proc(5),
    cgroups(7) and the kernel's admin-guide/cgroup-v2.rst.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:  # no Linux, or no /proc
        return None
    limits = []
    for mount in mounts:
        left, _, right = mount.partition(" - ")
        mounted, point = left.split()[3:5]
        kind, _, options = right.split()[:3]
        for group in groups:
            hierarchy, controllers, path = group.split(":", 2)
            if kind == "cgroup2":
                found = hierarchy == "0"
            else:
                found = "cpu" in controllers.split(",") and "cpu" in options.split(",")
            if found:
                limits += _limits_up_to(root / point.lstrip("/"), path.removeprefix(mounted))
    return min(limits, default=None)


def _limits_up_to(top: Path, inside: str) -> list[float]:
    """The limits of a group and of those above it, which bind it too."""
    group = top / inside.strip("/")
    if not group.is_dir():
        # In a container the path can be the host's; what the container may see of its own group
        # is then at the mount point.
        group = top
    above = [group, *group.parents]
    limits = map(_group_limit, above[: above.index(top) + 1])
    return [limit for limit in limits if limit is not None]


def _group_limit(folder: Path) -> float | None:
    """Quota over period of one control group of either version, None without a limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        if quota in ("max", "-1"):
            return None
        limit = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return limit if limit > 0 else None
