/* Convolution by implicit matrix product: every kernel size, stride, padding, dilation and number
 * of groups, forward and gradient by input. Scratch memory is bounded whatever the sizes.
 *
 * All functions but _packed and _scratch return 0, or -1 if there is no memory for the scratch.
 * Arrays need the alignment of their elements only; results must not overlap inputs.
 */
#ifndef CNNFAST_GEMM_H
#define CNNFAST_GEMM_H

#include <stddef.h>

#include "conv.h"

/* y = x * w + b, cut off at 0 and at `ceiling` unless that is 0. b may be NULL. packed may be NULL,
 * or what _pack wrote for this geometry: its N, H, W, OH and OW do not matter, the rest does. */
int gemm_forward_f32(const struct conv *g, const float *x, const float *w, const float *b,
                     double ceiling, float *y, const float *packed, int threads);
int gemm_forward_f64(const struct conv *g, const double *x, const double *w, const double *b,
                     double ceiling, double *y, const double *packed, int threads);

/* Bytes that _pack writes; 0 where prepared weights would not help. */
size_t gemm_packed_f32(const struct conv *g);
size_t gemm_packed_f64(const struct conv *g);

int gemm_pack_f32(const struct conv *g, const float *w, float *packed, int threads);
int gemm_pack_f64(const struct conv *g, const double *w, double *packed, int threads);

/* dx, every element of it; b (by C, may be NULL) is added, as a transposed convolution wants. */
int gemm_backward_input_f32(const struct conv *g, const float *dy, const float *w, const float *b,
                            float *dx, int threads);
int gemm_backward_input_f64(const struct conv *g, const double *dy, const double *w,
                            const double *b, double *dx, int threads);

/* Bytes of scratch memory that a call takes: at most 16 MB and 8 MB for each thread. */
size_t gemm_forward_scratch_f32(const struct conv *g, int threads);
size_t gemm_forward_scratch_f64(const struct conv *g, int threads);
size_t gemm_backward_input_scratch_f32(const struct conv *g, int threads);
size_t gemm_backward_input_scratch_f64(const struct conv *g, int threads);

#endif
