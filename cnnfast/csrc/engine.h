/* The kernels of the engine, named <operation>_<pass>_<dtype>. The instruction-set level is not in
 * the name: every level is an extension of its own, built from these sources.
 *
 * Arrays hold n elements and need no alignment; input and output must not overlap.
 */
#ifndef CNNFAST_ENGINE_H
#define CNNFAST_ENGINE_H

#include <stddef.h>

/* y = 0 where x < 0, else x: NaN and -0.0 pass, as in PyTorch. */
void relu_forward_f32(ptrdiff_t n, const float *x, float *y);
void relu_forward_f64(ptrdiff_t n, const double *x, double *y);

/* dx = 0 where x <= 0, else dy: where x is NaN the gradient passes, as in PyTorch. */
void relu_backward_f32(ptrdiff_t n, const float *dy, const float *x, float *dx);
void relu_backward_f64(ptrdiff_t n, const double *dy, const double *x, double *dx);

#endif
