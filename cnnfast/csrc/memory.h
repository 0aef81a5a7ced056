/* Memory that is used again: scratch of the kernels and large results.
 *
 * Fresh memory from the system is zeroed page by page when it is first touched, which costs more
 * than the arithmetic of many layers. Blocks that are given back are kept, up to a bound, for the
 * next call that asks for about as much.
 */
#ifndef CNNFAST_MEMORY_H
#define CNNFAST_MEMORY_H

#include <stddef.h>

/* At least `bytes` bytes, aligned to 64, with arbitrary contents; NULL if there are none. */
void *memory_take(size_t bytes);

/* Give back what memory_take gave; NULL is let pass. */
void memory_give(void *block);

/* Bytes kept for later, bytes in use, and the most that is kept. */
size_t memory_kept(void);
size_t memory_used(void);
size_t memory_limit(void);

/* Return what is kept to the system. */
void memory_release(void);

#endif
