/* Convolution of few channels: the first layer of a network, and groups of two to eight channels. */
#ifndef CNNFAST_DIRECT_H
#define CNNFAST_DIRECT_H

#include "conv.h"

/* They return 0, or -1 if there is no memory for the scratch, whose bytes _scratch tells. There is
 * nothing to prepare of the weights: `packed` is ignored. */
int direct_forward_f32(const struct conv *g, const float *x, const float *w, const float *b,
                          double ceiling, float *y, const float *packed, int threads);
int direct_forward_f64(const struct conv *g, const double *x, const double *w, const double *b,
                          double ceiling, double *y, const double *packed, int threads);
size_t direct_forward_scratch_f32(const struct conv *g, int threads);
size_t direct_forward_scratch_f64(const struct conv *g, int threads);

int direct_backward_input_f32(const struct conv *g, const float *dy, const float *w,
                                 const float *b, float *dx, int threads);
int direct_backward_input_f64(const struct conv *g, const double *dy, const double *w,
                                 const double *b, double *dx, int threads);
size_t direct_backward_input_scratch_f32(const struct conv *g, int threads);
size_t direct_backward_input_scratch_f64(const struct conv *g, int threads);

int direct_backward_weights_f32(const struct conv *g, const float *dy, const float *x,
                                   float *dw, int threads);
int direct_backward_weights_f64(const struct conv *g, const double *dy, const double *x,
                                   double *dw, int threads);
size_t direct_backward_weights_scratch_f32(const struct conv *g, int threads);
size_t direct_backward_weights_scratch_f64(const struct conv *g, int threads);

#endif
