/* Operations on each element, and the gradients of biases.
 *
 * Arrays hold n elements of one dtype and need no alignment. An output may be one of the inputs,
 * but not overlap one otherwise. Results are the same, bit for bit, for every number of threads.
 */
#ifndef CNNFAST_ELEMENTWISE_H
#define CNNFAST_ELEMENTWISE_H

#include <stddef.h>

/* y = 0 where x < 0, else x: NaN and -0.0 pass, as in PyTorch. */
void relu_forward_f32(ptrdiff_t n, const float *x, float *y, int threads);
void relu_forward_f64(ptrdiff_t n, const double *x, double *y, int threads);

/* dx = 0 where x <= 0, else dy: where x is NaN the gradient passes, as in PyTorch. */
void relu_backward_f32(ptrdiff_t n, const float *dy, const float *x, float *dx, int threads);
void relu_backward_f64(ptrdiff_t n, const double *dy, const double *x, double *dx, int threads);

/* y = x where x > 0, else slope * x; dx = dy where x > 0, else slope * dy. */
void leaky_relu_forward_f32(ptrdiff_t n, const float *x, double slope, float *y, int threads);
void leaky_relu_forward_f64(ptrdiff_t n, const double *x, double slope, double *y, int threads);
void leaky_relu_backward_f32(ptrdiff_t n, const float *dy, const float *x, double slope, float *dx,
                             int threads);
void leaky_relu_backward_f64(ptrdiff_t n, const double *dy, const double *x, double slope,
                             double *dx, int threads);

/* y = 1 / (1 + exp(-x)); dx = dy * y * (1 - y). Both to some units in the last place everywhere. */
void sigmoid_forward_f32(ptrdiff_t n, const float *x, float *y, int threads);
void sigmoid_forward_f64(ptrdiff_t n, const double *x, double *y, int threads);
void sigmoid_backward_f32(ptrdiff_t n, const float *dy, const float *x, float *dx, int threads);
void sigmoid_backward_f64(ptrdiff_t n, const double *dy, const double *x, double *dx, int threads);

/* y = tanh(x); dx = dy * (1 - y^2). */
void tanh_forward_f32(ptrdiff_t n, const float *x, float *y, int threads);
void tanh_forward_f64(ptrdiff_t n, const double *x, double *y, int threads);
void tanh_backward_f32(ptrdiff_t n, const float *dy, const float *x, float *dx, int threads);
void tanh_backward_f64(ptrdiff_t n, const double *dy, const double *x, double *dx, int threads);

/* y = a + b, and then ReLU if `relu`. */
void add_forward_f32(ptrdiff_t n, const float *a, const float *b, int relu, float *y, int threads);
void add_forward_f64(ptrdiff_t n, const double *a, const double *b, int relu, double *y,
                     int threads);

/* db[c] = the sum of dy[n, c, p] over n and p, in blocks that are added in double. -1 if there was
 * no memory for the blocks' sums, else 0. */
int bias_gradient_f32(ptrdiff_t N, ptrdiff_t C, ptrdiff_t P, const float *dy, float *db,
                      int threads);
int bias_gradient_f64(ptrdiff_t N, ptrdiff_t C, ptrdiff_t P, const double *dy, double *db,
                      int threads);

#endif
