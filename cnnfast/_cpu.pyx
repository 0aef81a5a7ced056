# cython: language_level=3, freethreading_compatible=True
"""What the processor and the operating system allow."""

cdef extern from "cpu.h" nogil:
    int cpu_has_x86_64_v2()
    int cpu_has_x86_64_v3()
    int cpu_has_x86_64_v4()
    int cpu_has_aarch64()
    void cpu_brand(char *text)
    enum: CPU_BRAND_BYTES


def levels() -> tuple[str, ...]:
    """The instruction-set levels that code may use here, best first; "generic" is always last."""
    names = []
    if cpu_has_x86_64_v4():
        names.append("x86-64-v4")
    if cpu_has_x86_64_v3():
        names.append("x86-64-v3")
    if cpu_has_x86_64_v2():
        names.append("x86-64-v2")
    if cpu_has_aarch64():
        names.append("aarch64")
    names.append("generic")
    return tuple(names)


def brand() -> str:
    """The processor's own name, "" where it does not tell."""
    cdef char text[CPU_BRAND_BYTES]
    cpu_brand(text)
    return text.decode("ascii", "replace").strip()
