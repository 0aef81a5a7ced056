#include "checksum.h"

#include <string.h>

#include "workers.h"

enum {
    LANES = 16, /* sums at a time: what the compiler keeps in a few vectors */
    STEPS = 32, /* words that go into a sum before it is mixed */
    TURN = 13,  /* bits that it is turned by at each: all 32 are turned differently */
    AHEAD = 4096, /* bytes: 1.5 times as fast from memory as what the processor fetches by itself */
    MOST_PARTS = 64,
    PART = 1 << 18, /* bytes, so that small arrays stay on the calling thread */
};

/* An odd multiplier (of L'Ecuyer, "Tables of linear congruential generators", 1999) makes this a
 * bijection of the word that goes in. */
static const uint64_t multiplier = 2862933555777941757u;

static uint64_t mix(uint64_t sum, uint64_t word)
{
    sum = (sum ^ word) * multiplier;
    return sum ^ sum >> 32;
}

static void fetch(const char *from)
{
#if defined(__GNUC__)
    for (size_t byte = 0; byte < LANES * sizeof(uint64_t); byte += 64)
        __builtin_prefetch((const void *)((uintptr_t)from + AHEAD + byte));
#else
    (void)from;
#endif
}

/* Turning and adding are a bijection of each word, too, at a fraction of a multiplication's cost, so
 * that memory is what limits the speed. As the turns repeat and commute with some changes, the sums
 * are mixed properly once in a while: then rows that change places are noticed wherever they stand. */
static uint64_t checksum_part(const char *start, size_t bytes)
{
    uint64_t lanes[LANES];
    for (int i = 0; i < LANES; i++)
        lanes[i] = mix((uint64_t)i, bytes);
    size_t done = 0;
    while (bytes - done >= sizeof lanes) {
        size_t steps = (bytes - done) / sizeof lanes;
        for (steps = steps < STEPS ? steps : STEPS; steps; steps--, done += sizeof lanes) {
            fetch(start + done);
            for (int i = 0; i < LANES; i++) {
                uint64_t word;
                memcpy(&word, start + done + i * sizeof word, sizeof word);
                lanes[i] = (lanes[i] << TURN | lanes[i] >> (64 - TURN)) + word;
            }
        }
        for (int i = 0; i < LANES; i++)
            lanes[i] = mix(lanes[i], (uint64_t)i);
    }
    uint64_t rest[LANES] = {0};
    memcpy(rest, start + done, bytes - done);
    uint64_t sum = 0;
    for (int i = 0; i < LANES; i++)
        sum = mix(sum, mix(lanes[i], rest[i]));
    return sum;
}

struct checksum_job {
    const char *start;
    size_t bytes, part_bytes;
    uint64_t sums[MOST_PARTS];
};

static void checksum_task(void *argument, ptrdiff_t part, ptrdiff_t slot)
{
    struct checksum_job *job = argument;
    const size_t from = (size_t)part * job->part_bytes;
    const size_t left = job->bytes - from;
    (void)slot;
    job->sums[part] =
        checksum_part(job->start + from, left < job->part_bytes ? left : job->part_bytes);
}

uint64_t checksum(const void *start, size_t bytes, int threads)
{
    struct checksum_job job = {.start = start, .bytes = bytes, .part_bytes = PART};
    while (job.part_bytes * MOST_PARTS < bytes)
        job.part_bytes *= 2;
    const ptrdiff_t parts = (ptrdiff_t)((bytes + job.part_bytes - 1) / job.part_bytes);
    workers_run(checksum_task, &job, parts, threads);
    uint64_t sum = bytes;
    for (ptrdiff_t i = 0; i < parts; i++)
        sum = mix(sum, job.sums[i]);
    return sum;
}

uint64_t checksum_join(uint64_t a, uint64_t b)
{
    return mix(mix(1, a), b);
}
