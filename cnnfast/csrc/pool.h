/* Max and average pooling of both dtypes.
 *
 * Window (i, j) of a plane holds the elements x[i*SH + k*DH - PT, j*SW + l*DW - PL], 0 <= k < KH,
 * 0 <= l < KW, that lie inside it. Arrays are in C order, x (planes, H, W) and y (planes, OH, OW);
 * inputs and outputs must not overlap. Every function returns -1 if there is no memory for its
 * scratch, else 0 unless it says otherwise. The result is the same for every number of threads.
 */
#ifndef CNNFAST_POOL_H
#define CNNFAST_POOL_H

#include <stddef.h>
#include <stdint.h>

struct pool {
    ptrdiff_t planes; /* N * C */
    ptrdiff_t H, W, KH, KW, OH, OW;
    ptrdiff_t SH, SW;         /* stride */
    ptrdiff_t PT, PL, PB, PR; /* padding; PB and PR only matter to count_include_pad */
    ptrdiff_t DH, DW;         /* dilation; average pooling has none */
};

/* The maximum of every window, and where in its plane it stands, as row * W + column; `indices`
 * may be NULL. Of equal elements the first in row-major order counts, a NaN beats everything, of
 * several the last. A window without elements gives -inf and the index -1. Without indices, of 0
 * and -0 either may be given. */
int max_pool_forward_f32(const struct pool *g, const float *x, float *y, int64_t *indices,
                         int threads);
int max_pool_forward_f64(const struct pool *g, const double *x, double *y, int64_t *indices,
                         int threads);

/* dx = the sum of the dy whose index points there, in row-major order; of g only planes, H, W, OH
 * and OW are read. The index -1 is passed over. Returns 1 if there is another outside the plane;
 * nothing outside is written then. */
int max_pool_backward_f32(const struct pool *g, const float *dy, const int64_t *indices,
                          float *dx, int threads);
int max_pool_backward_f64(const struct pool *g, const double *dy, const int64_t *indices,
                          double *dx, int threads);

/* The same with the place of the maximum in its window, as k * KW + l: an eighth of the memory, for
 * who knows the windows. KH * KW is at most 255; a window without elements has 255. */
int max_pool_forward_taps_f32(const struct pool *g, const float *x, float *y, uint8_t *taps,
                              int threads);
int max_pool_forward_taps_f64(const struct pool *g, const double *x, double *y, uint8_t *taps,
                              int threads);
int max_pool_backward_taps_f32(const struct pool *g, const float *dy, const uint8_t *taps,
                               float *dx, int threads);
int max_pool_backward_taps_f64(const struct pool *g, const double *dy, const uint8_t *taps,
                               double *dx, int threads);

/* The sum of every window over `divisor`, or if that is 0 over the number of its elements inside
 * the plane, with count_include_pad inside the padded plane. */
int avg_pool_forward_f32(const struct pool *g, const float *x, float *y, int count_include_pad,
                         ptrdiff_t divisor, int threads);
int avg_pool_forward_f64(const struct pool *g, const double *x, double *y,
                         int count_include_pad, ptrdiff_t divisor, int threads);
int avg_pool_backward_f32(const struct pool *g, const float *dy, float *dx,
                          int count_include_pad, ptrdiff_t divisor, int threads);
int avg_pool_backward_f64(const struct pool *g, const double *dy, double *dx,
                          int count_include_pad, ptrdiff_t divisor, int threads);

#endif
