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

#if defined(__AVX__) || (defined(__SSE2__) && CNNFAST_VECTOR_BYTES)
#include <immintrin.h>
#endif

#if REAL_BITS == 32
typedef float real;
typedef int32_t real_bits;
#elif REAL_BITS == 64
typedef double real;
typedef int64_t real_bits;
#else
#error "define REAL_BITS as 32 or 64"
#endif

/* The name of what other files call. */
#if !defined(KERNEL) && REAL_BITS == 32
#define KERNEL(name) name##_f32
#elif !defined(KERNEL)
#define KERNEL(name) name##_f64
#endif

#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define PREFETCH(p) __builtin_prefetch(p)
#else
#define ALWAYS_INLINE static inline
#define PREFETCH(p) ((void)(p))
#endif

/* Hold v in a register. Compilers put a load into each instruction that uses it, where the processor
 * has less room for loads than for multiply-adds, above all if it serves another thread as well. */
#if defined(__GNUC__) && CNNFAST_VECTOR_BYTES && defined(__x86_64__)
#define HOLD(v) __asm__("" : "+v"(v))
#elif defined(__GNUC__) && CNNFAST_VECTOR_BYTES && defined(__aarch64__)
#define HOLD(v) __asm__("" : "+w"(v))
#else
#define HOLD(v) ((void)(v))
#endif

/* How many vectors the processor holds at once, which bounds the tiles of the kernels. */
#if defined(__AVX512VL__) || defined(__aarch64__)
#define VECTOR_REGISTERS 32
#else
#define VECTOR_REGISTERS 16
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

/* A constant of the preprocessor, so that it can choose among sources. */
#if CNNFAST_VECTOR_BYTES
#define LANES_CONSTANT (CNNFAST_VECTOR_BYTES * 8 / REAL_BITS)
#else
#define LANES_CONSTANT 1
#endif
#define LANES ((ptrdiff_t)LANES_CONSTANT)

/* a where a > b, else b: that is b if one of them is NaN. */
static inline vec larger(vec a, vec b)
{
#if CNNFAST_VECTOR_BYTES == 64 && defined(__AVX512F__) && REAL_BITS == 32
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif CNNFAST_VECTOR_BYTES == 64 && defined(__AVX512F__)
    return (vec)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif CNNFAST_VECTOR_BYTES == 32 && defined(__AVX__) && REAL_BITS == 32
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif CNNFAST_VECTOR_BYTES == 32 && defined(__AVX__)
    return (vec)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif CNNFAST_VECTOR_BYTES == 16 && defined(__SSE2__) && REAL_BITS == 32
    return (vec)_mm_max_ps((__m128)a, (__m128)b);
#elif CNNFAST_VECTOR_BYTES == 16 && defined(__SSE2__)
    return (vec)_mm_max_pd((__m128d)a, (__m128d)b);
#else
    return blend(a > b, a, b);
#endif
}

/* Whether any lane of m is set. */
static inline int any(mask m)
{
#if CNNFAST_VECTOR_BYTES == 64 && defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)m, (__m512i)m) != 0;
#elif CNNFAST_VECTOR_BYTES == 32 && defined(__AVX__)
    return _mm256_movemask_ps((__m256)m) != 0;
#elif CNNFAST_VECTOR_BYTES == 16 && defined(__SSE2__)
    return _mm_movemask_ps((__m128)m) != 0;
#elif CNNFAST_VECTOR_BYTES
    real_bits all = 0;
    for (int i = 0; i < LANES; i++)
        all |= m[i];
    return all != 0;
#else
    return m;
#endif
}

/* v cut off below at 0 and above at `ceiling`; NaN passes. */
static inline vec rectified(vec v, real ceiling)
{
    const vec zero = splat(0), top = splat(ceiling);
    v = larger(zero, v);
    return blend(v > top, top, v);
}

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

#if CNNFAST_VECTOR_BYTES == 64 && defined(__AVX512F__)

#if REAL_BITS == 32
static inline vec load_part(const real *p, ptrdiff_t n)
{
    return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}

static inline void store_part(real *p, vec v, ptrdiff_t n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
}
#else
static inline vec load_part(const real *p, ptrdiff_t n)
{
    return (vec)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
}

static inline void store_part(real *p, vec v, ptrdiff_t n)
{
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
}
#endif

#elif CNNFAST_VECTOR_BYTES == 32 && defined(__AVX2__)

/* Ones in the first n of LANES elements: a window of a table that slides back by n. */
static inline __m256i first(ptrdiff_t n)
{
    static const real_bits table[2 * LANES_CONSTANT] = {
#if REAL_BITS == 32
        -1, -1, -1, -1,
#endif
        -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(table + LANES - n));
}

#if REAL_BITS == 32
static inline vec load_part(const real *p, ptrdiff_t n)
{
    return (vec)_mm256_maskload_ps(p, first(n));
}

static inline void store_part(real *p, vec v, ptrdiff_t n)
{
    _mm256_maskstore_ps(p, first(n), (__m256)v);
}
#else
static inline vec load_part(const real *p, ptrdiff_t n)
{
    return (vec)_mm256_maskload_pd(p, first(n));
}

static inline void store_part(real *p, vec v, ptrdiff_t n)
{
    _mm256_maskstore_pd(p, first(n), (__m256d)v);
}
#endif

#else

static inline vec load_part(const real *p, ptrdiff_t n)
{
    real part[LANES_CONSTANT] = {0};
    for (ptrdiff_t i = 0; i < n; i++)
        part[i] = p[i];
    return load(part);
}

static inline void store_part(real *p, vec v, ptrdiff_t n)
{
    real part[LANES_CONSTANT];
    store(part, v);
    for (ptrdiff_t i = 0; i < n; i++)
        p[i] = part[i];
}

#endif

/* Stores that bypass the caches, for results larger than them; p must be aligned to a vector.
 * stream_fence() orders them before whatever tells another thread that they are done. */
static inline void stream(real *p, vec v)
{
#if CNNFAST_VECTOR_BYTES == 32 && defined(__AVX__)
    _mm256_stream_si256((__m256i *)p, (__m256i)v);
#elif CNNFAST_VECTOR_BYTES == 64 && defined(__AVX512F__)
    _mm512_stream_si512((__m512i *)p, (__m512i)v);
#elif CNNFAST_VECTOR_BYTES == 16 && defined(__SSE2__)
    _mm_stream_si128((__m128i *)p, (__m128i)v);
#else
    store(p, v);
#endif
}

static inline void stream_fence(void)
{
#if CNNFAST_VECTOR_BYTES && defined(__SSE2__)
    _mm_sfence();
#endif
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector) && CNNFAST_VECTOR_BYTES
#define HAS_SHUFFLE 1
#endif
#endif

#ifdef HAS_SHUFFLE
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif

/* Transpose a block of LANES x LANES elements, held as LANES rows. Each step exchanges, in blocks
 * of twice `step` rows and columns, the two quarters off the diagonal. */
ALWAYS_INLINE void transpose(vec row[LANES_CONSTANT])
{
#ifdef HAS_SHUFFLE
#pragma GCC unroll 4 /* without, GCC keeps 8 rows and more in memory */
    for (ptrdiff_t step = LANES / 2; step; step /= 2) {
#pragma GCC unroll 16
        for (ptrdiff_t i = 0; i < LANES; i++) {
            if (i & step)
                continue;
            const vec a = row[i], b = row[i + step];
#if LANES_CONSTANT == 2
            row[i] = SHUFFLE(a, b, 0, 2);
            row[i + step] = SHUFFLE(a, b, 1, 3);
#elif LANES_CONSTANT == 4
            if (step == 2) {
                row[i] = SHUFFLE(a, b, 0, 1, 4, 5);
                row[i + step] = SHUFFLE(a, b, 2, 3, 6, 7);
            } else {
                row[i] = SHUFFLE(a, b, 0, 4, 2, 6);
                row[i + step] = SHUFFLE(a, b, 1, 5, 3, 7);
            }
#elif LANES_CONSTANT == 8
            if (step == 4) {
                row[i] = SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
                row[i + step] = SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
            } else if (step == 2) {
                row[i] = SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
                row[i + step] = SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
            } else {
                row[i] = SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
                row[i + step] = SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
            }
#elif LANES_CONSTANT == 16
            if (step == 8) {
                row[i] = SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
                row[i + step] =
                    SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
            } else if (step == 4) {
                row[i] = SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
                row[i + step] =
                    SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
            } else if (step == 2) {
                row[i] = SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
                row[i + step] =
                    SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
            } else {
                row[i] = SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
                row[i + step] =
                    SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
            }
#endif
        }
    }
#else
    real block[LANES_CONSTANT * LANES_CONSTANT], turned[LANES_CONSTANT * LANES_CONSTANT];
    for (ptrdiff_t i = 0; i < LANES; i++)
        store(block + i * LANES, row[i]);
    for (ptrdiff_t i = 0; i < LANES; i++)
        for (ptrdiff_t j = 0; j < LANES; j++)
            turned[j * LANES + i] = block[i * LANES + j];
    for (ptrdiff_t i = 0; i < LANES; i++)
        row[i] = load(turned + i * LANES);
#endif
}

#endif
