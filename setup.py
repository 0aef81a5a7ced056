"""Build the extensions; everything else about the package is in pyproject.toml.

The Cython kernels are built once, with the compiler's plain flags. The engine is built once per
instruction-set level, into ``cnnfast/_isa/<level>/``, from the same sources; ``cnnfast.compiled``
chooses among them at run time.

Without a working C compiler the installation succeeds and is a pure Python one. With
CNNFAST_REQUIRE_EXT=1 in the environment a failure to build any extension is fatal.
"""

from __future__ import annotations

import copy
import os
import re
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

REQUIRED = os.environ.get("CNNFAST_REQUIRE_EXT", "") not in ("", "0")

# A limited-API extension serves every Python from 3.11 on, the first with buffers in that API.
# Free-threaded builds have no limited API.
ABI3 = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
ABI3_MACROS = [("Py_LIMITED_API", "0x030B0000")] if ABI3 else []

COMMON_FLAGS = [
    "-O3",
    "-g0",  # Python's own flags often ask for debugging information, which is most of a file
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wno-unused-function",  # Cython writes out every combination of fused types
]
# The Cython kernels promise the same bits on every machine, so no multiply-add is contracted there
# (compilers for ARM do that unasked). The engine is written for fused multiply-add.
KERNEL_FLAGS = [*COMMON_FLAGS, "-ffp-contract=off"]
ENGINE_FLAGS = [
    *COMMON_FLAGS,
    "-ffp-contract=fast",
    "-fno-predictive-commoning",  # GCC's pass that keeps too much in registers, and spills
]
MSVC_FLAGS = ["/O2"]

# Level: the flags that allow its instructions, and the bytes of a vector (0: plain C).
X86_64_LEVELS = {
    "x86_64_v2": (["-march=x86-64-v2"], 16),
    "x86_64_v3": (["-march=x86-64-v3"], 32),
    "x86_64_v4": (["-march=x86-64-v4"], 64),
}
AARCH64_LEVELS: dict[str, tuple[list[str], int]] = {"aarch64": ([], 16)}
GENERIC_LEVEL: dict[str, tuple[list[str], int]] = {"generic": ([], 0)}

ENGINE_SOURCES = [
    f"cnnfast/csrc/{name}.c"
    for name in (
        "checksum", "engine_f32", "engine_f64", "half_f32", "half_f64", "memory", "workers"
    )
]  # fmt: skip
INCLUDED = sorted(str(p) for p in Path("cnnfast/csrc").iterdir() if p.suffix in (".h", ".inc"))


def target_machine() -> str:
    """The processor that is compiled for, "" if it is several at once or unknown."""
    platform = sysconfig.get_platform()
    if platform.startswith("macosx"):
        named = set(re.findall(r"-arch\s+(\S+)", os.environ.get("ARCHFLAGS", "")))
        machine = named.pop() if len(named) == 1 else "" if named else platform.split("-")[-1]
    else:
        machine = platform.split("-")[-1].lower()
    return machine


def engine_levels() -> dict[str, tuple[list[str], int]]:
    """The levels to build: plain C, and those that GCC's and Clang's vectors can serve."""
    if os.name == "nt":
        return GENERIC_LEVEL
    machine = target_machine()
    if machine == "x86_64":
        return GENERIC_LEVEL | X86_64_LEVELS
    if machine in ("aarch64", "arm64"):
        return GENERIC_LEVEL | AARCH64_LEVELS
    return GENERIC_LEVEL


def kernel(name: str, *sources: str) -> Extension:
    return Extension(
        f"cnnfast.{name}",
        [f"cnnfast/{name}.pyx", *sources],
        include_dirs=["cnnfast/csrc"],
        define_macros=ABI3_MACROS,
        extra_compile_args=KERNEL_FLAGS,
        depends=["setup.py", "cnnfast/_span.pxd", *INCLUDED],
        py_limited_api=ABI3,
        optional=not REQUIRED,
    )


def engine(level: str, flags: list[str], vector_bytes: int) -> Extension:
    return Extension(
        f"cnnfast._isa.{level}._engine",
        ["cnnfast/_engine.pyx", *ENGINE_SOURCES],
        include_dirs=["cnnfast/csrc"],
        define_macros=[
            *ABI3_MACROS,
            ("CNNFAST_LEVEL", level),
            ("CNNFAST_VECTOR_BYTES", str(vector_bytes)),
        ],
        extra_compile_args=[*ENGINE_FLAGS, *flags],
        extra_link_args=[] if os.name == "nt" else ["-pthread"],
        depends=["setup.py", *INCLUDED],
        py_limited_api=ABI3,
        optional=not REQUIRED,
    )


class BuildExt(build_ext):
    """Translate each .pyx once, keep the objects of the extensions apart, report what failed."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.parallel is None:
            self.parallel = True
        self.failed: set[str] = set()

    def run(self) -> None:
        self.translate()
        if self.inplace:
            for ext in self.extensions:  # the levels' folders hold nothing else, so may be missing
                Path(self.get_ext_fullpath(ext.name)).parent.mkdir(parents=True, exist_ok=True)
        super().run()
        self.drop_failed()

    def translate(self) -> None:
        """Turn the .pyx sources into C: once each, though four extensions share one of them."""
        import Cython
        from Cython.Build import cythonize

        base = Path(self.get_finalized_command("build").build_base)
        sources = sorted({s for ext in self.extensions for s in ext.sources if s.endswith(".pyx")})
        translated = cythonize(
            [Extension(s.removesuffix(".pyx").replace("/", "."), [s]) for s in sources],
            # The version is in the path because C from another Cython must not be taken over.
            build_dir=str(base / f"cython-{Cython.__version__}"),
            force=self.force,
        )
        c_files = dict(zip(sources, (ext.sources[0] for ext in translated), strict=True))
        for ext in self.extensions:
            ext.sources = [c_files.get(source, source) for source in ext.sources]

    def build_extension(self, ext: Extension) -> None:
        if self.compiler.compiler_type == "msvc":
            ext.extra_compile_args = MSVC_FLAGS
        # Objects are named after their sources, which the levels of the engine have in common, so
        # each extension has its folder; a copy of the command, as several are built at once.
        worker = copy.copy(self)
        worker.build_temp = str(Path(self.build_temp) / ext.name)
        try:
            super(BuildExt, worker).build_extension(ext)
        except Exception:
            self.failed.add(ext.name)
            raise

    def drop_failed(self) -> None:
        """Leave no file of an earlier build in the place of an extension that failed now."""
        if not self.failed:
            return
        for name in self.failed:
            Path(self.get_ext_fullpath(name)).unlink(missing_ok=True)
            Path(self.build_lib, self.get_ext_filename(name)).unlink(missing_ok=True)
        left = [ext for ext in self.extensions if ext.name not in self.failed]
        self.extensions[:] = left
        self.distribution.ext_modules = left
        self.warn(f"not built, for the errors above: {', '.join(sorted(self.failed))}")
        if not left:
            self.warn("no extension could be built: cnnfast will work, slowly, as pure Python")


class BdistWheel(bdist_wheel):
    """Tag the wheel by what was built: without any extension it is for every platform."""

    def run(self) -> None:
        if not self.skip_build:
            self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


setup(
    ext_modules=[
        kernel("_cpu", "cnnfast/csrc/cpu.c"),
        kernel("_im2col"),
        kernel("_norm"),
        kernel("_plans"),
        kernel("_pool"),
        kernel("_resample"),
        *(engine(level, *how) for level, how in engine_levels().items()),
    ],
    cmdclass={"build_ext": BuildExt, "bdist_wheel": BdistWheel},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
