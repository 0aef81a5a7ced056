/* Batch normalisation of x (N, C, P), where P counts the values of a channel in one example.
 *
 * Arrays are C-contiguous and of one dtype; statistics are double whatever that is. x and dy are
 * only read, y and dx are written completely and overlap nothing. Results are the same, bit for
 * bit, for every number of threads.
 */
#ifndef CNNFAST_NORM_H
#define CNNFAST_NORM_H

#include <stddef.h>

/* y = (x - mean) / sqrt(var + eps) * weight + bias, and then ReLU if `relu`. weight and bias may be
 * NULL for ones and zeros. mean, var, weight, bias (C,). */
void batch_norm_forward_f32(ptrdiff_t N, ptrdiff_t C, ptrdiff_t P, const float *x,
                            const double *mean, const double *var, const float *weight,
                            const float *bias, double eps, int relu, float *y, int threads);
void batch_norm_forward_f64(ptrdiff_t N, ptrdiff_t C, ptrdiff_t P, const double *x,
                            const double *mean, const double *var, const double *weight,
                            const double *bias, double eps, int relu, double *y, int threads);

/* The same with the moments of x itself, which are written to mean and var. */
void batch_norm_forward_training_f32(ptrdiff_t N, ptrdiff_t C, ptrdiff_t P, const float *x,
                                     const float *weight, const float *bias, double eps, int relu,
                                     float *y, double *mean, double *var, int threads);
void batch_norm_forward_training_f64(ptrdiff_t N, ptrdiff_t C, ptrdiff_t P, const double *x,
                                     const double *weight, const double *bias, double eps, int relu,
                                     double *y, double *mean, double *var, int threads);

/* Gradients of the training forward, with xhat = (x - mean) * rstd and averages over a channel:
 *
 *     dbias = sum(dy)    dweight = sum(dy * xhat)
 *     dx = weight * rstd * (dy - avg(dy) - xhat * avg(dy * xhat))
 *
 * With `relu` dy is the gradient by the ReLU's output, and first set to 0 where the normalised and
 * shifted x is <= 0; this needs the forward's bias, which is not read otherwise. mean, rstd,
 * dweight, dbias (C,). */
void batch_norm_backward_f32(ptrdiff_t N, ptrdiff_t C, ptrdiff_t P, const float *dy, const float *x,
                             const double *mean, const double *rstd, const float *weight,
                             const float *bias, int relu, float *dx, double *dweight,
                             double *dbias, int threads);
void batch_norm_backward_f64(ptrdiff_t N, ptrdiff_t C, ptrdiff_t P, const double *dy,
                             const double *x, const double *mean, const double *rstd,
                             const double *weight, const double *bias, int relu, double *dx,
                             double *dweight, double *dbias, int threads);

#endif
