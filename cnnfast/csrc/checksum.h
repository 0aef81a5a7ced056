/* Whether an array has changed since it was last looked at. */
#ifndef CNNFAST_CHECKSUM_H
#define CNNFAST_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* A number that depends on every bit of `bytes` bytes and on their order. A change of one 8-byte
 * word always changes it, another change does so but for one in 2^64. It is for noticing changes,
 * not for defence against who makes them on purpose. */
uint64_t checksum(const void *start, size_t bytes, int threads);

/* One of two, whose order counts. */
uint64_t checksum_join(uint64_t a, uint64_t b);

#endif
