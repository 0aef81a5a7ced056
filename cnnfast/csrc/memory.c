#define _POSIX_C_SOURCE 200809L /* posix_memalign in strict C11 too */
#include "memory.h"

#include <stdint.h>
#include <stdlib.h>

#if defined(_WIN32)
#include <malloc.h>
#include <windows.h>
#else
#include <pthread.h>
#endif

/* In front of each block, and as large as its alignment, so that what follows is aligned too. */
union header {
    struct {
        size_t bytes; /* with the header */
        union header *next;
    } block;
    char alignment[64];
};

/* Blocks are few and large, so one list, searched for the best fit, does. */
enum { MOST_BLOCKS = 64 };
static const size_t most_bytes = (size_t)256 << 20;
static union header *kept;
static size_t kept_blocks, kept_bytes, used_bytes;

#if defined(_WIN32)
static SRWLOCK lock = SRWLOCK_INIT;

static void enter(void)
{
    AcquireSRWLockExclusive(&lock);
}

static void leave(void)
{
    ReleaseSRWLockExclusive(&lock);
}

static void *from_system(size_t bytes)
{
    return _aligned_malloc(bytes, sizeof(union header));
}

static void to_system(void *block)
{
    _aligned_free(block);
}
#else
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t forks_once = PTHREAD_ONCE_INIT;

static void before_fork(void)
{
    pthread_mutex_lock(&lock);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&lock);
}

/* A child of a fork has only the thread that forked, so the lock must be that thread's. */
static void watch_forks(void)
{
    pthread_atfork(before_fork, after_fork, after_fork);
}

static void enter(void)
{
    pthread_once(&forks_once, watch_forks);
    pthread_mutex_lock(&lock);
}

static void leave(void)
{
    pthread_mutex_unlock(&lock);
}

static void *from_system(size_t bytes)
{
    void *block = NULL;
    return posix_memalign(&block, sizeof(union header), bytes) ? NULL : block;
}

static void to_system(void *block)
{
    free(block);
}
#endif

/* Take out of the list the smallest block that is large enough, but not more than twice so. */
static union header *best_fit(size_t bytes)
{
    union header **best = NULL;
    for (union header **at = &kept; *at; at = &(*at)->block.next) {
        const size_t has = (*at)->block.bytes;
        if (has >= bytes && has / 2 <= bytes && (!best || has < (*best)->block.bytes))
            best = at;
    }
    if (!best)
        return NULL;
    union header *found = *best;
    *best = found->block.next;
    kept_blocks--;
    kept_bytes -= found->block.bytes;
    return found;
}

/* Take out of the list the block that has been there longest, which is its last one. */
static union header *oldest(void)
{
    union header **at = &kept;
    while ((*at)->block.next)
        at = &(*at)->block.next;
    union header *found = *at;
    *at = NULL;
    kept_blocks--;
    kept_bytes -= found->block.bytes;
    return found;
}

void *memory_take(size_t bytes)
{
    const size_t page = 4096;
    if (bytes > PTRDIFF_MAX - page - sizeof(union header))
        return NULL;
    bytes = (bytes + sizeof(union header) + page - 1) / page * page;
    enter();
    union header *found = best_fit(bytes);
    if (found)
        used_bytes += found->block.bytes;
    leave();
    if (!found) {
        found = from_system(bytes);
        if (!found) {
            memory_release();
            found = from_system(bytes);
            if (!found)
                return NULL;
        }
        found->block.bytes = bytes;
        enter();
        used_bytes += bytes;
        leave();
    }
    return found + 1;
}

void memory_give(void *block)
{
    if (!block)
        return;
    union header *given = (union header *)block - 1, *dropped = NULL;
    enter();
    used_bytes -= given->block.bytes;
    given->block.next = kept;
    kept = given;
    kept_blocks++;
    kept_bytes += given->block.bytes;
    while (kept_blocks > MOST_BLOCKS || kept_bytes > most_bytes) {
        union header *old = oldest();
        old->block.next = dropped;
        dropped = old;
    }
    leave();
    while (dropped) {
        union header *next = dropped->block.next;
        to_system(dropped);
        dropped = next;
    }
}

size_t memory_kept(void)
{
    enter();
    const size_t bytes = kept_bytes;
    leave();
    return bytes;
}

size_t memory_used(void)
{
    enter();
    const size_t bytes = used_bytes;
    leave();
    return bytes;
}

size_t memory_limit(void)
{
    return most_bytes;
}

void memory_release(void)
{
    enter();
    union header *all = kept;
    kept = NULL;
    kept_blocks = kept_bytes = 0;
    leave();
    while (all) {
        union header *next = all->block.next;
        to_system(all);
        all = next;
    }
}
