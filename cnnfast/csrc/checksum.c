#include "checksum.h"

#include <string.h>

#include "workers.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

enum {
    LANES = 16, /* sums at a time: what the compiler keeps in a few vectors */
    STEPS = 32, /* words that go into a sum before it is mixed */
    AHEAD = 4096, /* bytes: 1.5 times as fast from memory as what the processor fetches by itself */
    MOST_PARTS = 64,
    PART = 1 << 18, /* bytes, so that small arrays stay on the calling thread */
};

/* Odd multipliers: of L'Ecuyer, "Tables of linear congruential generators", 1999, and 2^64 over the
 * golden ratio, whose multiples are spread evenly (Knuth, volume 3, 6.4). */
static const uint64_t multiplier = 2862933555777941757u, golden = 0x9E3779B97F4A7C15u;

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

/* Each word is added to one sum, so that a change of one always shows, and the product of its halves,
 * after a key that depends on its place, to another one, so that changes do not cancel out, and words
 * that change places show: Collet, "xxHash", XXH3, whose one multiplication of 32 bits for each word
 * is of the kind that vectors have. */
#if defined(__AVX2__)
/* Compilers do not find the instruction, and take three multiplications for it. */
static void take_words(const char *from, uint64_t lanes[LANES], uint64_t keys[LANES])
{
    const __m256i next = _mm256_set1_epi64x((long long)(golden * LANES));
    for (int i = 0; i < LANES; i += 4) {
        const __m256i words = _mm256_loadu_si256((const __m256i *)(from + i * sizeof *lanes));
        const __m256i key = _mm256_loadu_si256((const __m256i *)(keys + i));
        const __m256i keyed = _mm256_xor_si256(words, key);
        const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
        __m256i sum = _mm256_loadu_si256((const __m256i *)(lanes + i));
        sum = _mm256_add_epi64(sum, _mm256_shuffle_epi32(words, 0x4e));
        sum = _mm256_add_epi64(sum, product);
        _mm256_storeu_si256((__m256i *)(lanes + i), sum);
        _mm256_storeu_si256((__m256i *)(keys + i), _mm256_add_epi64(key, next));
    }
}
#else
static void take_words(const char *from, uint64_t lanes[LANES], uint64_t keys[LANES])
{
    uint64_t words[LANES];
    memcpy(words, from, sizeof words);
    for (int i = 0; i < LANES; i++) {
        const uint64_t keyed = words[i] ^ keys[i];
        lanes[i] += words[i ^ 1] + (keyed & 0xffffffff) * (keyed >> 32);
        keys[i] += golden * LANES;
    }
}
#endif

static uint64_t checksum_part(const char *start, size_t bytes)
{
    uint64_t lanes[LANES], keys[LANES];
    for (int i = 0; i < LANES; i++)
        lanes[i] = mix((uint64_t)i, bytes);
    size_t done = 0;
    while (bytes - done >= sizeof lanes) {
        size_t steps = (bytes - done) / sizeof lanes;
        for (int i = 0; i < LANES; i++)
            keys[i] = golden * (uint64_t)(i + 1);
        for (steps = steps < STEPS ? steps : STEPS; steps; steps--, done += sizeof lanes) {
            fetch(start + done);
            take_words(start + done, lanes, keys);
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
