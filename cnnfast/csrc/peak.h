/* What the machine can do at most, measured: benchmarks give their figures as a share of it. */
#ifndef CNNFAST_PEAK_H
#define CNNFAST_PEAK_H

#include <stddef.h>

/* Multiply-adds on numbers that never leave the registers, in as many independent chains as it
 * takes to hide their latency. Each of `threads` threads runs `iterations` times through
 * peak_fma_flops() floating-point operations (a multiply-add is two), so that a call that takes t
 * seconds ran at threads * iterations * peak_fma_flops() / t. The result hangs on every operation
 * and means nothing. Take a million iterations or more: the start of the threads is timed too. */
float peak_fma_f32(ptrdiff_t iterations, int threads);
double peak_fma_f64(ptrdiff_t iterations, int threads);
ptrdiff_t peak_fma_flops_f32(void);
ptrdiff_t peak_fma_flops_f64(void);

/* y = x, n elements; with `streaming` by stores that bypass the caches. A plain copy of an array
 * larger than the caches moves three arrays' worth of bytes (y is read before it is written), a
 * streaming one two. */
void peak_copy_f32(ptrdiff_t n, const float *x, float *y, int streaming, int threads);
void peak_copy_f64(ptrdiff_t n, const double *x, double *y, int streaming, int threads);

#endif
