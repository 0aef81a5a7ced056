/* Convolution by Winograd's algorithm: any window of more than one tap, any padding, groups, and a
 * stride or a dilation, but not both in one dimension; the gradient by the input at stride 1 only.
 *
 * `winograd` works in tiles of six points a side, so that 3x3 windows have outputs in tiles of 4x4,
 * F(4x4, 3x3), with 1/4 of the direct method's multiplications. `winograd2` is for 3x3 windows at
 * stride 1 and dilation 1, in tiles of 2x2 outputs with 4/9 of them: as accurate as direct summation,
 * less waste at the edges of small images, and transformed weights of 16 instead of 36 numbers per
 * channel and filter. Windows have WINOGRAD_WINDOW taps at most, 144.
 *
 * If a result is not finite, all are computed again by gemm, so that NaN and infinity are where the
 * direct method has them and no finite result is lost to an overflow inside.
 */
#ifndef CNNFAST_WINOGRAD_H
#define CNNFAST_WINOGRAD_H

#include "conv.h"

/* y = x * w + b, cut off at 0 and `ceiling` unless that is 0; b may be NULL. `packed` is NULL or
 * what winograd_pack wrote. 0, or -1 if there is no memory for scratch, as from all functions here. */
int winograd_forward_f32(const struct conv *g, const float *x, const float *w, const float *b,
                         double ceiling, float *y, const float *packed, int threads);
int winograd_forward_f64(const struct conv *g, const double *x, const double *w, const double *b,
                         double ceiling, double *y, const double *packed, int threads);
int winograd2_forward_f32(const struct conv *g, const float *x, const float *w, const float *b,
                          double ceiling, float *y, const float *packed, int threads);
int winograd2_forward_f64(const struct conv *g, const double *x, const double *w,
                          const double *b, double ceiling, double *y, const double *packed,
                          int threads);

/* Bytes of the transformed weights, and those. They depend on C, F, G, the window and its stride, not
 * on N or the size of the images. w must still be passed to forward: results that are not finite are made from it. */
size_t winograd_packed_f32(const struct conv *g);
size_t winograd_packed_f64(const struct conv *g);
int winograd_pack_f32(const struct conv *g, const float *w, float *packed, int threads);
int winograd_pack_f64(const struct conv *g, const double *w, double *packed, int threads);
size_t winograd2_packed_f32(const struct conv *g);
size_t winograd2_packed_f64(const struct conv *g);
int winograd2_pack_f32(const struct conv *g, const float *w, float *packed, int threads);
int winograd2_pack_f64(const struct conv *g, const double *w, double *packed, int threads);

/* dx from dy, plus b[c] if b is not NULL (the bias of a transposed convolution). */
int winograd_backward_input_f32(const struct conv *g, const float *dy, const float *w,
                                const float *b, float *dx, int threads);
int winograd_backward_input_f64(const struct conv *g, const double *dy, const double *w,
                                const double *b, double *dx, int threads);
int winograd2_backward_input_f32(const struct conv *g, const float *dy, const float *w,
                                 const float *b, float *dx, int threads);
int winograd2_backward_input_f64(const struct conv *g, const double *dy, const double *w,
                                 const double *b, double *dx, int threads);

/* dw from dy and x. */
int winograd_backward_weights_f32(const struct conv *g, const float *dy, const float *x,
                                  float *dw, int threads);
int winograd_backward_weights_f64(const struct conv *g, const double *dy, const double *x,
                                  double *dw, int threads);
int winograd2_backward_weights_f32(const struct conv *g, const float *dy, const float *x,
                                   float *dw, int threads);
int winograd2_backward_weights_f64(const struct conv *g, const double *dy, const double *x,
                                   double *dw, int threads);

/* Bytes of scratch that the functions above take, on at most so many threads. */
size_t winograd_forward_scratch_f32(const struct conv *g, int threads);
size_t winograd_forward_scratch_f64(const struct conv *g, int threads);
size_t winograd_backward_input_scratch_f32(const struct conv *g, int threads);
size_t winograd_backward_input_scratch_f64(const struct conv *g, int threads);
size_t winograd_backward_weights_scratch_f32(const struct conv *g, int threads);
size_t winograd_backward_weights_scratch_f64(const struct conv *g, int threads);
size_t winograd2_forward_scratch_f32(const struct conv *g, int threads);
size_t winograd2_forward_scratch_f64(const struct conv *g, int threads);
size_t winograd2_backward_input_scratch_f32(const struct conv *g, int threads);
size_t winograd2_backward_input_scratch_f64(const struct conv *g, int threads);
size_t winograd2_backward_weights_scratch_f32(const struct conv *g, int threads);
size_t winograd2_backward_weights_scratch_f64(const struct conv *g, int threads);

#endif
