/* Softmax, its logarithm and cross entropy along the last axis of (N, K), K > 0.
 *
 * Arrays are C-contiguous and of one dtype; outputs overlap no input. Results are the same, bit for
 * bit, for every number of threads.
 */
#ifndef CNNFAST_LOSS_H
#define CNNFAST_LOSS_H

#include <stddef.h>
#include <stdint.h>

/* The mean of the rows' cross entropy with their targets, and dscores, its gradient. The target is
 * 1 - smoothing at the label, from 0 to K - 1, and smoothing / K everywhere. NaN if N is 0. */
double cross_entropy_f32(ptrdiff_t N, ptrdiff_t K, const float *scores, const int64_t *labels,
                         double smoothing, float *dscores, int threads);
double cross_entropy_f64(ptrdiff_t N, ptrdiff_t K, const double *scores, const int64_t *labels,
                         double smoothing, double *dscores, int threads);

/* y = exp(x) / sum(exp(x)); dx = y * (dy - sum(dy * y)). */
void softmax_forward_f32(ptrdiff_t N, ptrdiff_t K, const float *x, float *y, int threads);
void softmax_forward_f64(ptrdiff_t N, ptrdiff_t K, const double *x, double *y, int threads);
void softmax_backward_f32(ptrdiff_t N, ptrdiff_t K, const float *dy, const float *y, float *dx,
                          int threads);
void softmax_backward_f64(ptrdiff_t N, ptrdiff_t K, const double *dy, const double *y, double *dx,
                          int threads);

/* y = x - log(sum(exp(x))); dx = dy - exp(y) * sum(dy). */
void log_softmax_forward_f32(ptrdiff_t N, ptrdiff_t K, const float *x, float *y, int threads);
void log_softmax_forward_f64(ptrdiff_t N, ptrdiff_t K, const double *x, double *y, int threads);
void log_softmax_backward_f32(ptrdiff_t N, ptrdiff_t K, const float *dy, const float *y, float *dx,
                              int threads);
void log_softmax_backward_f64(ptrdiff_t N, ptrdiff_t K, const double *dy, const double *y,
                              double *dx, int threads);

#endif
