/* Convolution whose groups see one channel each: C == G, F a multiple of C. */
#ifndef CNNFAST_DEPTHWISE_H
#define CNNFAST_DEPTHWISE_H

#include "conv.h"

/* They return 0, or -1 if there is no memory for the scratch, whose bytes _scratch tells. There is
 * nothing to prepare of the weights: `packed` is ignored. */
int depthwise_forward_f32(const struct conv *g, const float *x, const float *w, const float *b,
                          double ceiling, float *y, const float *packed, int threads);
int depthwise_forward_f64(const struct conv *g, const double *x, const double *w, const double *b,
                          double ceiling, double *y, const double *packed, int threads);
size_t depthwise_forward_scratch_f32(const struct conv *g, int threads);
size_t depthwise_forward_scratch_f64(const struct conv *g, int threads);

int depthwise_backward_input_f32(const struct conv *g, const float *dy, const float *w,
                                 const float *b, float *dx, int threads);
int depthwise_backward_input_f64(const struct conv *g, const double *dy, const double *w,
                                 const double *b, double *dx, int threads);
size_t depthwise_backward_input_scratch_f32(const struct conv *g, int threads);
size_t depthwise_backward_input_scratch_f64(const struct conv *g, int threads);

int depthwise_backward_weights_f32(const struct conv *g, const float *dy, const float *x,
                                   float *dw, int threads);
int depthwise_backward_weights_f64(const struct conv *g, const double *dy, const double *x,
                                   double *dw, int threads);
size_t depthwise_backward_weights_scratch_f32(const struct conv *g, int threads);
size_t depthwise_backward_weights_scratch_f64(const struct conv *g, int threads);

#endif
