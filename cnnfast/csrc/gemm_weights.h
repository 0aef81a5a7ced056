/* The gradient of convolution by its weights as an implicit product of matrices: any kernel size,
 * stride, padding, dilation and number of groups.
 *
 *   dw[f, c, k, l] = sum over n, i, j of
 *                    dy[n, f, i, j] * x[n, c, i*SH + k*DH - PT, j*SW + l*DW - PL]
 *
 * The result is bitwise the same for every number of threads. Returns 0, or -1 if there is no
 * memory for the scratch, of which gemm_backward_weights_scratch tells the bytes.
 */
#ifndef CNNFAST_GEMM_WEIGHTS_H
#define CNNFAST_GEMM_WEIGHTS_H

#include <stddef.h>

#include "conv.h"

int gemm_backward_weights_f32(const struct conv *g, const float *dy, const float *x, float *dw,
                              int threads);
int gemm_backward_weights_f64(const struct conv *g, const double *dy, const double *x, double *dw,
                              int threads);
size_t gemm_backward_weights_scratch_f32(const struct conv *g, int threads);
size_t gemm_backward_weights_scratch_f64(const struct conv *g, int threads);

#endif
