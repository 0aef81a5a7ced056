"""Which extensions are found, which level of the engine is chosen, and what its kernels compute."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cnnfast import _version, compiled
from cnnfast.info import info

PACKAGE = Path(compiled.__file__).parent
needs_engine = pytest.mark.skipif(not compiled.isa_levels(), reason="no engine is installed")
LEVELS = ["x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64", "generic"]


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing remembered from before, and nothing left behind."""
    caches = (
        compiled._load, compiled.engine, compiled.isa, compiled.isa_built, compiled.isa_levels
    )  # fmt: skip
    for function in caches:
        function.cache_clear()
    yield
    for function in caches:
        function.cache_clear()


def without(*modules: str) -> Any:
    """An import_module and a find_spec for which these modules do not exist."""

    def import_module(name: str) -> ModuleType:
        if name in modules:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return importlib.import_module(name)

    def find_spec(name: str) -> object:
        return None if name in modules else importlib.util.find_spec(name)

    class Importlib:
        util = type("util", (), {"find_spec": staticmethod(find_spec)})

    Importlib.import_module = staticmethod(import_module)  # type: ignore[attr-defined]
    return Importlib


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_level_that_is_used_was_built() -> None:
    assert set(compiled.isa_levels()) <= set(compiled.isa_built()) <= set(LEVELS)
    assert info()["isa_available"] == list(compiled.isa_levels())
    assert info()["isa_built"] == list(compiled.isa_built())


@needs_engine
def test_the_best_level_is_the_default(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CNNFAST_ISA", raising=False)
    assert compiled.isa() == compiled.isa_levels()[0]
    assert compiled.isa_levels()[-1] == "generic"
    assert compiled.engine().level() == compiled.isa()


@pytest.mark.parametrize("level", compiled.isa_levels())
def test_a_forced_level_is_the_one_that_runs(
    level: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNNFAST_ISA", level)
    assert compiled.isa() == level
    assert compiled.engine().level() == level
    assert level.replace("-", "_") in Path(str(compiled.engine().__file__)).parts
    assert info()["isa"] == level


@pytest.mark.parametrize("level", [*LEVELS, "avx2", "X86-64-V3"])
def test_a_level_that_cannot_be_used_is_refused_by_name(
    level: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if level in compiled.isa_levels():
        pytest.skip("it can be used here")
    monkeypatch.setenv("CNNFAST_ISA", level)
    for ask in (compiled.isa, compiled.engine, compiled.engine_missing):
        with pytest.raises(ValueError, match=rf"^CNNFAST_ISA: '{level}' .*usable here: "):
            ask()


def test_a_level_for_another_processor_is_told_from_one_not_built(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "isa_built", lambda: ("x86-64-v4", "generic"))
    monkeypatch.setattr(compiled, "isa_levels", lambda: ("generic",))
    monkeypatch.setenv("CNNFAST_ISA", "x86-64-v4")
    with pytest.raises(ValueError, match="does not offer; usable here: generic"):
        compiled.isa()
    monkeypatch.setenv("CNNFAST_ISA", "aarch64")
    with pytest.raises(ValueError, match="was not built"):
        compiled.isa()


@needs_engine
def test_the_level_is_chosen_at_first_use_not_at_import() -> None:
    found = python(
        "import os, cnnfast; from cnnfast import compiled;"
        "os.environ['CNNFAST_ISA'] = 'generic'; print(compiled.isa())",
        CNNFAST_ISA="no such level",
    )
    assert found.stdout.strip() == "generic", found.stderr


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo")
@pytest.mark.skipif("x86-64-v2" not in compiled.isa_built(), reason="not built for x86-64")
def test_the_processor_is_read_as_the_kernel_reads_it() -> None:
    line = next(s for s in Path("/proc/cpuinfo").read_text().splitlines() if s.startswith("flags"))
    flags = set(line.split(":")[1].split())
    v2 = {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"} <= flags
    v3 = v2 and {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"} <= flags
    v4 = v3 and {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= flags
    allowed = importlib.import_module("cnnfast._cpu").levels()
    expected = {"x86-64-v2": v2, "x86-64-v3": v3, "x86-64-v4": v4}
    assert {level: level in allowed for level in expected} == expected
    name = next(
        s for s in Path("/proc/cpuinfo").read_text().splitlines() if s.startswith("model name")
    )
    assert compiled.processor() == name.split(":", 1)[1].strip()


@pytest.mark.skipif(compiled.cython_missing() is not None, reason="nothing is compiled")
class TestMissing:
    def test_a_module_that_is_not_there(self, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compiled, "importlib", without("cnnfast._pool"))
        monkeypatch.setattr(compiled, "__file__", "/elsewhere/compiled.py")  # no source folder
        reason = "cnnfast._pool is not there: cnnfast was built without a working C compiler"
        assert compiled.cython_missing() == reason
        with pytest.raises(ImportError, match=reason):
            compiled.kernels("_pool")
        assert compiled.kernels("_im2col").__name__ == "cnnfast._im2col"
        assert info()["compiled"] is False
        assert info()["reason"] == reason
        with pytest.warns(RuntimeWarning, match=f"many times slower: {reason}; to get them, "):
            compiled.warn_if_missing()

    def test_a_source_folder_that_was_not_built(
        self, fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "_im2col.pyx").touch()
        monkeypatch.setattr(compiled, "importlib", without("cnnfast._im2col"))
        monkeypatch.setattr(compiled, "__file__", str(tmp_path / "compiled.py"))
        assert compiled.cython_missing() == (
            f"cnnfast._im2col is not there: {tmp_path} is a source folder in which nothing has "
            "been built (pip install -e .)"
        )

    def test_a_module_that_cannot_be_loaded(
        self, fresh: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def import_module(name: str) -> ModuleType:
            raise ImportError("libm.so.9: cannot open shared object file")

        monkeypatch.setattr(compiled.importlib, "import_module", import_module)
        assert compiled.cython_missing() == (
            "cnnfast._im2col is installed but cannot be loaded: "
            "libm.so.9: cannot open shared object file"
        )

    def test_the_memory_of_calls_that_is_not_there(
        self, fresh: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It only saves time, so it is not missed."""
        assert compiled.plans(object, None) is not None
        compiled._load.cache_clear()
        monkeypatch.setattr(compiled, "importlib", without("cnnfast._plans"))
        assert compiled.plans(object, None) is None
        assert compiled.cython_missing() is None

    def test_no_engine(self, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CNNFAST_ISA", raising=False)
        monkeypatch.setattr(compiled, "isa_built", lambda: ())
        assert compiled.isa_levels() == ()
        assert compiled.isa() is None
        assert compiled.engine_missing() is not None
        with pytest.raises(ImportError, match="the engine is not there: "):
            compiled.engine()
        monkeypatch.setenv("CNNFAST_ISA", "generic")
        compiled.isa.cache_clear()
        with pytest.raises(ValueError, match="usable here: none"):
            compiled.isa()

    def test_without_the_processor_s_answer_only_plain_c_is_used(
        self, fresh: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(compiled, "importlib", without("cnnfast._cpu"))
        assert compiled.isa_levels() == ("generic",)
        assert compiled.processor() == ""

    def test_nothing_is_said_when_nothing_is_missing(self, fresh: None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compiled.warn_if_missing()


def test_an_unknown_kernel_module() -> None:
    with pytest.raises(ValueError, match=r"name must be one of _im2col, _pool, .*, not '_conv'"):
        compiled.kernels("_conv")


def test_info_is_json() -> None:
    facts = info()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["version"] == _version.__version__
    assert facts["compiled"] is (facts["reason"] is None)
    assert facts["numpy"] == np.__version__
    assert facts["threads"] >= 1
    assert facts["blas"] is None or set(facts["blas"]) == {"name", "version"}


@pytest.fixture(params=compiled.isa_levels())
def engine(
    request: pytest.FixtureRequest, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    monkeypatch.setenv("CNNFAST_ISA", request.param)
    return compiled.engine()


def padded(x: np.ndarray, shift: int, poison: float) -> np.ndarray:
    """A copy of x somewhere inside a larger array, at an address that suits no vector."""
    whole = np.full(x.size + shift + 8, poison, x.dtype)
    inside = whole[shift : shift + x.size]
    inside[:] = x
    return inside


# Around the lanes of every level: 1, 2, 4, 8 and 16 elements.
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_relu(engine: ModuleType, n: int, shift: int, dtype: Any) -> None:
    special = np.array([np.nan, -np.inf, -0.0, 0.0, np.inf, -1.5, 2.5, -1e-40], dtype)
    x = padded(np.resize(special, n), shift, np.nan)
    dy = padded(np.arange(1, n + 1, dtype=dtype), shift, np.nan)
    x.flags.writeable = dy.flags.writeable = False

    y = padded(np.full(n, np.nan, dtype), shift, 77)
    plan = engine.Elementwise("relu", x.shape, dtype is np.float64)
    assert plan((x,), y) is y
    expected = np.where(x < 0, 0, x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(expected))
    assert (y.base[:shift] == 77).all()
    assert (y.base[shift + n :] == 77).all()

    dx = padded(np.full(n, np.nan, dtype), shift, 77)
    assert engine.Elementwise("relu_backward", x.shape, dtype is np.float64)((dy, x), dx) is dx
    np.testing.assert_array_equal(dx, np.where(x <= 0, 0, dy))
    assert (dx.base[:shift] == 77).all()
    assert (dx.base[shift + n :] == 77).all()


@needs_engine
def test_a_plan_refuses_what_is_not_as_it_needs_it(engine: ModuleType) -> None:
    plan = engine.Elementwise("relu", (3,), False)
    x, y = np.ones(3, np.float32), np.ones(3, np.float32)
    assert plan((np.ones((3, 2), np.float32)[:, 0],)) is None  # not in C order
    y.flags.writeable = False
    for out in (np.zeros(3), np.zeros(4, np.float32), y, x):
        assert plan((x,), out) is None
    with pytest.raises(ValueError, match="an array of 16 bytes came where 12 were due"):
        plan((np.ones(4, np.float32),))


SOURCES = PACKAGE / "csrc"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.skipif(not SOURCES.is_dir(), reason="an installation without the C sources")
@pytest.mark.parametrize("vector_bytes", [0, 16])
@pytest.mark.parametrize("source", sorted(SOURCES.glob("*.c")), ids=lambda path: path.name)
def test_the_c_sources_compile_without_a_warning(source: Path, vector_bytes: int) -> None:
    # Sizes are signed all through, so each product with a sizeof() changes the sign.
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-sign-conversion"]
    vectors = f"-DCNNFAST_VECTOR_BYTES={vector_bytes}"
    found = subprocess.run(
        ["cc", *strict, "-Werror", "-fsyntax-only", vectors, source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
