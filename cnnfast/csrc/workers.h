/* The threads of the engine: one pool, started when first needed, asleep when idle. */
#ifndef CNNFAST_WORKERS_H
#define CNNFAST_WORKERS_H

#include <stddef.h>

/* More threads than this never take part in a job. */
enum { WORKERS_MOST = 256 };

/* Part `part` of a job, on the thread that has number `slot` in it. */
typedef void (*workers_task)(void *job, ptrdiff_t part, ptrdiff_t slot);

/* Call task(job, part, slot) once for each part of 0 to parts - 1 and return when all are done.
 *
 * At most `threads` threads take part, the caller among them, as slots 0 to threads - 1. Which
 * thread takes which part, and when, is not determined, so no result may depend on it. Fewer
 * threads take part, down to the caller alone, if the pool serves another caller at the time, if
 * this call comes from within a task, or if the system has no thread to give.
 */
void workers_run(workers_task task, void *job, ptrdiff_t parts, int threads);

/* The same, but each thread begins with neighbouring parts of its own, the same ones in every call,
 * and only then takes what others have left. For tasks that wait for memory: a thread finds in its
 * cache what it wrote in the call before, not what another one did. */
void workers_run_apart(workers_task task, void *job, ptrdiff_t parts, int threads);

#endif
