/* Reading and writing arrays larger than the caches.
 *
 * A plain store to memory reads the line first, so a copy of a large array moves three bytes for
 * each two; a non-temporal store moves two, but what it wrote must come back from memory. On a Zen 3
 * with 32 MB of third-level cache, ReLU of 8 MB runs at 49 GB/s (read and written) plain and 45
 * non-temporal, of 12 MB at 27 and 42, of 64 MB at 12 and 27.
 *
 * Fetching ahead pays where an array is only read: one core then reads 33 GB/s from memory instead
 * of 25. It does not where something is written as well, or from the caches.
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
