/* Vectors of one width and one dtype, from the vector extensions of GCC and Clang.
 *
 * A translation unit defines REAL_BITS (32 or 64) before it includes this; the build defines
 * CNNFAST_VECTOR_BYTES for the instruction-set level. With 0 a "vector" is one number and the
 * same kernels are plain C, which any compiler takes.
 *
 * A `mask` is what comparing two vectors gives. Loads and stores need no alignment, and the ones
 * that end in _part touch only the first n elements: kernels never read past the end of an array.
 */
#ifndef CNNFAST_SIMD_H
#define CNNFAST_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if REAL_BITS == 32
typedef float real;
typedef int32_t real_bits;
#define KERNEL(name) name##_f32
#elif REAL_BITS == 64
typedef double real;
typedef int64_t real_bits;
#define KERNEL(name) name##_f64
#else
#error "define REAL_BITS as 32 or 64"
#endif

#if CNNFAST_VECTOR_BYTES

typedef real vec __attribute__((vector_size(CNNFAST_VECTOR_BYTES)));
typedef real_bits mask __attribute__((vector_size(CNNFAST_VECTOR_BYTES)));

static inline vec splat(real value)
{
    return value - (vec){0}; /* not "+": that would lose the sign of -0.0 */
}

static inline vec blend(mask m, vec yes, vec no)
{
    return (vec)((m & (mask)yes) | (~m & (mask)no));
}

#else

typedef real vec;
typedef int mask;

static inline vec splat(real value)
{
    return value;
}

static inline vec blend(mask m, vec yes, vec no)
{
    return m ? yes : no;
}

#endif

#define LANES ((ptrdiff_t)(sizeof(vec) / sizeof(real)))

/* memcpy, not a cast pointer: the compilers turn it into one unaligned instruction, and it is
 * defined for every address. */
static inline vec load(const real *p)
{
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store(real *p, vec v)
{
    memcpy(p, &v, sizeof v);
}

static inline vec load_part(const real *p, ptrdiff_t n)
{
    vec v = splat(0);
    memcpy(&v, p, (size_t)n * sizeof(real));
    return v;
}

static inline void store_part(real *p, vec v, ptrdiff_t n)
{
    memcpy(p, &v, (size_t)n * sizeof(real));
}

#endif
