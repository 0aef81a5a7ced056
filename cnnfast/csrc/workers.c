#define _GNU_SOURCE /* POSIX threads in strict C11 too, and Linux's processor numbers */
#include "workers.h"

#if defined(_WIN32) || !defined(__GNUC__)

/* Without POSIX threads and GCC's atomics the caller does all the work. */
void workers_run(workers_task task, void *job, ptrdiff_t parts, int threads)
{
    (void)threads;
    for (ptrdiff_t part = 0; part < parts; part++)
        task(job, part, 0);
}

void workers_run_apart(workers_task task, void *job, ptrdiff_t parts, int threads)
{
    workers_run(task, job, parts, threads);
}

#else

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#include <sys/syscall.h>
#endif

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

enum {
    /* Pauses before a thread that waits goes to sleep: some 0.1 ms, in which the next layer of a
     * network usually asks again. Waking a sleeping thread takes some tens of microseconds, more on
     * a virtual machine: MobileNetV2 on two threads took 13.6 ms with 2,000 pauses, 12.1 with 10,000
     * and 11.6 with 40,000, which would take too much from others. */
    SPINS = 10000,
};

/* The job on offer. A thread takes part by adding 1 to `state` while OPEN is set in it; the caller
 * clears OPEN when no part is left and waits for those inside to leave. A thread that wakes too
 * late finds the offer closed and is never waited for. */
static struct {
    workers_task task;
    void *job;
    ptrdiff_t parts;
    int threads;
    int shares; /* 1, or `threads`: into so many are the parts divided, */
    struct {
        _Atomic ptrdiff_t next; /* part of one of them */
        char apart[64 - sizeof(ptrdiff_t)]; /* a line of the cache for each */
    } share[WORKERS_MOST];
    _Atomic uint64_t state;  /* OPEN, and how many pool threads are inside */
    _Atomic uint64_t number; /* of the offer, so that a thread answers each once */
    _Atomic int asleep;      /* pool threads that wait for `posted` */
    _Atomic int waiting;     /* whether the caller waits for `done` */
} offer;
static const uint64_t OPEN = (uint64_t)1 << 32;

static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER; /* held by the caller who is served */
static pthread_mutex_t sleeping = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t posted = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
static int started; /* pool threads; guarded by `owner` */
static pthread_once_t forks_once = PTHREAD_ONCE_INIT;

static void take_parts(ptrdiff_t slot)
{
    for (int i = 0; i < offer.shares; i++) { /* its own share first, and then what others left */
        const ptrdiff_t share = (slot + i) % offer.shares;
        const ptrdiff_t end = offer.parts * (share + 1) / offer.shares;
        for (;;) {
            const ptrdiff_t part = atomic_fetch_add(&offer.share[share].next, 1);
            if (part >= end)
                break;
            offer.task(offer.job, part, slot);
        }
    }
}

static int enter_offer(void)
{
    uint64_t state = atomic_load(&offer.state);
    while (state & OPEN)
        if (atomic_compare_exchange_weak(&offer.state, &state, state + 1))
            return 1;
    return 0;
}

static void leave_offer(void)
{
    /* Whoever leaves last tells a caller that has gone to sleep. */
    if (atomic_fetch_sub(&offer.state, 1) == 1 && atomic_load(&offer.waiting)) {
        pthread_mutex_lock(&sleeping);
        pthread_cond_signal(&done);
        pthread_mutex_unlock(&sleeping);
    }
}

#if defined(__linux__)

/* Linux may wake a thread on the processor where it fell asleep, though its caller is busy there by
 * now, and then takes 30 ms and more to part them, in which two threads do the work of one. So each
 * notes where it falls asleep, and the first that would be in the caller's way is kept from there
 * for the moment in which it is woken. */
static struct {
    pid_t thread;
    int processor;
} beds[WORKERS_MOST]; /* guarded by `sleeping` */

static void note_bed(ptrdiff_t slot)
{
    beds[slot].thread = (pid_t)syscall(SYS_gettid);
    beds[slot].processor = sched_getcpu();
}

/* A thread that fell asleep on this processor, or 0. */
static pid_t find_neighbour(int here)
{
    for (int slot = 1; slot < offer.threads && slot <= started; slot++)
        if (beds[slot].thread && beds[slot].processor == here)
            return beds[slot].thread;
    return 0;
}

static void wake_threads(void)
{
    const int here = sched_getcpu();
    cpu_set_t all, others;
    pthread_mutex_lock(&sleeping);
    const pid_t thread = here < 0 ? 0 : find_neighbour(here);
    int moved = thread && !sched_getaffinity(thread, sizeof all, &all);
    if (moved) {
        others = all;
        CPU_CLR(here, &others);
        moved = CPU_COUNT(&others) && !sched_setaffinity(thread, sizeof others, &others);
    }
    pthread_cond_broadcast(&posted);
    pthread_mutex_unlock(&sleeping);
    if (moved)
        sched_setaffinity(thread, sizeof all, &all);
}

#else

static void note_bed(ptrdiff_t slot)
{
    (void)slot;
}

static void wake_threads(void)
{
    pthread_mutex_lock(&sleeping);
    pthread_cond_broadcast(&posted);
    pthread_mutex_unlock(&sleeping);
}

#endif

static void wait_for_offer(uint64_t seen, ptrdiff_t slot)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&offer.number, memory_order_relaxed) != seen)
            return;
        PAUSE();
    }
    pthread_mutex_lock(&sleeping);
    note_bed(slot);
    atomic_fetch_add(&offer.asleep, 1);
    while (atomic_load(&offer.number) == seen)
        pthread_cond_wait(&posted, &sleeping);
    atomic_fetch_sub(&offer.asleep, 1);
    pthread_mutex_unlock(&sleeping);
}

static void *serve(void *argument)
{
    const ptrdiff_t slot = (ptrdiff_t)(intptr_t)argument;
    uint64_t seen = 0;
    for (;;) {
        wait_for_offer(seen, slot);
        seen = atomic_load(&offer.number);
        if (enter_offer()) {
            if (slot < offer.threads)
                take_parts(slot);
            leave_offer();
        }
    }
    return NULL;
}

/* The child of a fork has none of the pool's threads, and locks that nobody will open. */
static void forget_threads(void)
{
    pthread_mutex_init(&owner, NULL);
    pthread_mutex_init(&sleeping, NULL);
    pthread_cond_init(&posted, NULL);
    pthread_cond_init(&done, NULL);
    atomic_store(&offer.state, 0);
    atomic_store(&offer.asleep, 0);
    atomic_store(&offer.waiting, 0);
#if defined(__linux__)
    memset(beds, 0, sizeof beds);
#endif
    started = 0;
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, forget_threads);
}

/* Start threads until there are `wanted` beside the caller, or the system has no more. */
static void start(int wanted)
{
    while (started < wanted) {
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        const int failed =
            pthread_create(&thread, &attributes, serve, (void *)(intptr_t)(started + 1));
        pthread_attr_destroy(&attributes);
        if (failed)
            return;
        started++;
    }
}

static void wait_until_left(void)
{
    for (int i = 0; i < SPINS; i++) {
        if (!atomic_load(&offer.state))
            return;
        PAUSE();
    }
    pthread_mutex_lock(&sleeping);
    atomic_store(&offer.waiting, 1);
    while (atomic_load(&offer.state))
        pthread_cond_wait(&done, &sleeping);
    atomic_store(&offer.waiting, 0);
    pthread_mutex_unlock(&sleeping);
}

static void run(workers_task task, void *job, ptrdiff_t parts, int threads, int apart)
{
    if (threads > WORKERS_MOST)
        threads = WORKERS_MOST;
    if (threads > parts)
        threads = (int)parts;
    /* A caller who finds the pool taken, by another thread or by itself further up, works alone:
     * that keeps as many processors busy, and waits for nothing. */
    if (threads < 2 || pthread_mutex_trylock(&owner)) {
        for (ptrdiff_t part = 0; part < parts; part++)
            task(job, part, 0);
        return;
    }
    pthread_once(&forks_once, watch_forks);
    start(threads - 1);
    offer.task = task;
    offer.job = job;
    offer.parts = parts;
    offer.threads = threads;
    offer.shares = apart ? threads : 1;
    for (int i = 0; i < offer.shares; i++)
        atomic_store_explicit(&offer.share[i].next, parts * i / offer.shares, memory_order_relaxed);
    atomic_store(&offer.state, OPEN);
    atomic_fetch_add(&offer.number, 1);
    if (atomic_load(&offer.asleep))
        wake_threads();
    take_parts(0);
    atomic_fetch_and(&offer.state, ~OPEN);
    wait_until_left();
    pthread_mutex_unlock(&owner);
}

void workers_run(workers_task task, void *job, ptrdiff_t parts, int threads)
{
    run(task, job, parts, threads, 0);
}

void workers_run_apart(workers_task task, void *job, ptrdiff_t parts, int threads)
{
    run(task, job, parts, threads, 1);
}

#endif
