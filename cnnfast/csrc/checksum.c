#include "checksum.h"

#include <string.h>

#include "workers.h"

enum {
    LANES = 8, /* chains of multiplications at a time, which hides their latency */
    WORD = 8,
    MOST_PARTS = 64,
    PART = 1 << 18, /* bytes, so that small arrays stay on the calling thread */
};

/* An odd multiplier (of L'Ecuyer, "Tables of linear congruential generators", 1999) makes each
 * step a bijection of the word that goes in. */
static const uint64_t multiplier = 2862933555777941757u;

static uint64_t mix(uint64_t sum, uint64_t word)
{
    sum = (sum ^ word) * multiplier;
    return sum ^ sum >> 32;
}

static uint64_t checksum_part(const char *start, size_t bytes)
{
    uint64_t lanes[LANES];
    for (int i = 0; i < LANES; i++)
        lanes[i] = (uint64_t)i + bytes;
    size_t done = 0;
    for (; done + LANES * WORD <= bytes; done += LANES * WORD) {
        uint64_t words[LANES];
        memcpy(words, start + done, sizeof words);
        for (int i = 0; i < LANES; i++)
            lanes[i] = mix(lanes[i], words[i]);
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
