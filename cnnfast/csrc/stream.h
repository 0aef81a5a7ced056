/* Reading and writing large arrays: fetching ahead, and stores that go past the caches.
 *
 * A plain store to memory reads the line first, so a copy of an array larger than the caches moves
 * three bytes for each two; a non-temporal store moves two, but what it wrote must come back from
 * memory. And one processor keeps more reads under way if it is told where it will go than if the
 * hardware has to guess. A copy on a Zen 3 with 32 MB of third-level cache, GB/s read and written:
 *
 *     array    plain    plain, fetched ahead    non-temporal
 *     1 MB     35       59                      45
 *     8 MB     30       54                      45
 *     16 MB    23       20                      41
 *     64 MB    13       12                      27
 */
#ifndef CNNFAST_STREAM_H
#define CNNFAST_STREAM_H

#include "simd.h"

#include <stdint.h>

/* Whether a result is so large that little of it would still be in the cache for its reader. */
static inline int stream_pays(ptrdiff_t n)
{
    return n >= ((ptrdiff_t)10 << 20) / (ptrdiff_t)sizeof(real);
}

/* How many elements lie between p and the next address that stream() takes. */
static inline ptrdiff_t stream_head(const real *p)
{
#if CNNFAST_VECTOR_BYTES
    return (ptrdiff_t)(-(uintptr_t)p % sizeof(vec) / sizeof(real));
#else
    (void)p;
    return 0;
#endif
}

/* `streamed` is a constant at every call; p is aligned where it is set. */
ALWAYS_INLINE void stream_or_store(real *p, vec v, int streamed)
{
    if (streamed)
        stream(p, v);
    else
        store(p, v);
}

/* A distance, in elements, at which fetching ahead pays. */
static const ptrdiff_t stream_ahead = 4096 / (ptrdiff_t)sizeof(real);

/* Fetch the lines of four vectors `ahead` elements after p, if that is not 0. They may lie outside
 * of any array, as such a fetch never faults. */
ALWAYS_INLINE void stream_fetch(const real *p, ptrdiff_t ahead)
{
    const uintptr_t at = (uintptr_t)p + (uintptr_t)ahead * sizeof(real);
    if (ahead)
        for (size_t byte = 0; byte < 4 * sizeof(vec); byte += 64)
            PREFETCH((const void *)(at + byte));
}

#endif
