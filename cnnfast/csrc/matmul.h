/* The three products of a linear layer, y = x w^T + b, for arrays in C order:
 *
 *   x, dx (N, I)    w, dw (O, I)    b, db (O)    y, dy (N, O)
 *
 * Any size may be 0. Every element of an output is written; outputs must not overlap inputs. The
 * result is the same, bit for bit, for every number of threads. 0 is returned, or -1 if there is
 * no memory for the scratch, of which the _scratch functions tell the bytes.
 */
#ifndef CNNFAST_MATMUL_H
#define CNNFAST_MATMUL_H

#include <stddef.h>

/* y = x w^T + b, then 0 where that is negative if `relu`; b may be NULL. */
int linear_forward_f32(ptrdiff_t N, ptrdiff_t I, ptrdiff_t O, const float *x, const float *w,
                       const float *b, int relu, float *y, int threads);
int linear_forward_f64(ptrdiff_t N, ptrdiff_t I, ptrdiff_t O, const double *x, const double *w,
                       const double *b, int relu, double *y, int threads);

/* dx = dy w */
int linear_backward_input_f32(ptrdiff_t N, ptrdiff_t I, ptrdiff_t O, const float *dy,
                              const float *w, float *dx, int threads);
int linear_backward_input_f64(ptrdiff_t N, ptrdiff_t I, ptrdiff_t O, const double *dy,
                              const double *w, double *dx, int threads);

/* dw = dy^T x, and db = the sums of the columns of dy; db may be NULL. */
int linear_backward_weights_f32(ptrdiff_t N, ptrdiff_t I, ptrdiff_t O, const float *dy,
                                const float *x, float *dw, float *db, int threads);
int linear_backward_weights_f64(ptrdiff_t N, ptrdiff_t I, ptrdiff_t O, const double *dy,
                                const double *x, double *dw, double *db, int threads);

size_t linear_forward_scratch_f32(ptrdiff_t N, ptrdiff_t I, ptrdiff_t O, int threads);
size_t linear_forward_scratch_f64(ptrdiff_t N, ptrdiff_t I, ptrdiff_t O, int threads);
size_t linear_backward_input_scratch_f32(ptrdiff_t N, ptrdiff_t I, ptrdiff_t O, int threads);
size_t linear_backward_input_scratch_f64(ptrdiff_t N, ptrdiff_t I, ptrdiff_t O, int threads);
size_t linear_backward_weights_scratch_f32(ptrdiff_t N, ptrdiff_t I, ptrdiff_t O, int threads);
size_t linear_backward_weights_scratch_f64(ptrdiff_t N, ptrdiff_t I, ptrdiff_t O, int threads);

#endif
