/* Feature bits: Intel's Software Developer's Manual, volume 2A, CPUID, and AMD's Architecture
 * Programmer's Manual, volume 3, appendix E. Levels: the x86-64 psABI, "Micro-Architecture Levels".
 */
#include "cpu.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)

#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif

struct registers {
    uint32_t eax, ebx, ecx, edx;
};

/* Zeros where the processor does not have the leaf. */
static struct registers cpuid(uint32_t leaf)
{
    struct registers r = {0, 0, 0, 0};
#if defined(_MSC_VER)
    int highest[4], out[4];
    __cpuid(highest, (int)(leaf & 0x80000000u));
    if ((uint32_t)highest[0] >= leaf) {
        __cpuidex(out, (int)leaf, 0);
        r.eax = (uint32_t)out[0];
        r.ebx = (uint32_t)out[1];
        r.ecx = (uint32_t)out[2];
        r.edx = (uint32_t)out[3];
    }
#else
    if (__get_cpuid_max(leaf & 0x80000000u, 0) >= leaf)
        __cpuid_count(leaf, 0, r.eax, r.ebx, r.ecx, r.edx);
#endif
    return r;
}

/* The states that the operating system saves at a task switch (XCR0); 0 if it saves none. */
static uint32_t saved_states(void)
{
    if (!(cpuid(1).ecx & (1u << 27))) /* OSXSAVE */
        return 0;
#if defined(_MSC_VER)
    return (uint32_t)_xgetbv(0);
#else
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
#endif
}

static int all(uint32_t have, uint32_t wanted)
{
    return (have & wanted) == wanted;
}

int cpu_has_x86_64_v2(void)
{
    const uint32_t sse3 = 1u << 0, ssse3 = 1u << 9, cmpxchg16b = 1u << 13, sse41 = 1u << 19,
                   sse42 = 1u << 20, popcnt = 1u << 23;
    const uint32_t lahf = 1u << 0; /* leaf 0x80000001 */
    return all(cpuid(1).ecx, sse3 | ssse3 | cmpxchg16b | sse41 | sse42 | popcnt)
           && all(cpuid(0x80000001u).ecx, lahf);
}

int cpu_has_x86_64_v3(void)
{
    const uint32_t fma = 1u << 12, movbe = 1u << 22, avx = 1u << 28, f16c = 1u << 29;
    const uint32_t bmi1 = 1u << 3, avx2 = 1u << 5, bmi2 = 1u << 8; /* leaf 7, ebx */
    const uint32_t lzcnt = 1u << 5;                                /* leaf 0x80000001 */
    const uint32_t xmm = 1u << 1, ymm = 1u << 2;
    return cpu_has_x86_64_v2() && all(cpuid(1).ecx, fma | movbe | avx | f16c)
           && all(cpuid(7).ebx, bmi1 | avx2 | bmi2) && all(cpuid(0x80000001u).ecx, lzcnt)
           && all(saved_states(), xmm | ymm);
}

int cpu_has_x86_64_v4(void)
{
    const uint32_t avx512f = 1u << 16, avx512dq = 1u << 17, avx512cd = 1u << 28,
                   avx512bw = 1u << 30, avx512vl = 1u << 31; /* leaf 7, ebx */
#if defined(__APPLE__)
    /* macOS enables the state at a thread's first AVX-512 instruction, so XCR0 does not show it. */
    const uint32_t states = 0;
#else
    const uint32_t states = 1u << 5 | 1u << 6 | 1u << 7; /* masks, upper halves, zmm16 to zmm31 */
#endif
    return cpu_has_x86_64_v3()
           && all(cpuid(7).ebx, avx512f | avx512dq | avx512cd | avx512bw | avx512vl)
           && all(saved_states(), states);
}

void cpu_brand(char text[CPU_BRAND_BYTES])
{
    struct registers part[3];
    for (uint32_t i = 0; i < 3; i++)
        part[i] = cpuid(0x80000002u + i);
    memcpy(text, part, sizeof part);
    text[CPU_BRAND_BYTES - 1] = 0;
}

#else

int cpu_has_x86_64_v2(void)
{
    return 0;
}

int cpu_has_x86_64_v3(void)
{
    return 0;
}

int cpu_has_x86_64_v4(void)
{
    return 0;
}

void cpu_brand(char text[CPU_BRAND_BYTES])
{
    text[0] = 0;
}

#endif

int cpu_has_aarch64(void)
{
#if defined(__aarch64__) || defined(_M_ARM64)
    return 1;
#else
    return 0;
#endif
}
