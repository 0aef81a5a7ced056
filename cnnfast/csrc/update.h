/* The steps of the optimisers of cnnfast/training/optim.py, where their formulas are, each in one
 * pass over memory.
 *
 * p holds the n parameters and g their gradient; p and the state are changed in place. No array
 * overlaps another. State that an option needs, and only then, is not NULL.
 */
#ifndef CNNFAST_UPDATE_H
#define CNNFAST_UPDATE_H

#include <stddef.h>

/* SGD; `buffer` with a momentum. `steps` counts this one, from 1: the first fills the buffer. */
void sgd_update_f32(ptrdiff_t n, const float *g, float *p, float *buffer, double lr,
                    double momentum, double dampening, double weight_decay, int nesterov,
                    ptrdiff_t steps, int threads);
void sgd_update_f64(ptrdiff_t n, const double *g, double *p, double *buffer, double lr,
                    double momentum, double dampening, double weight_decay, int nesterov,
                    ptrdiff_t steps, int threads);

/* RMSprop; `average` if centred, `buffer` with a momentum. */
void rmsprop_update_f32(ptrdiff_t n, const float *g, float *p, float *square, float *average,
                        float *buffer, double lr, double alpha, double eps, double weight_decay,
                        double momentum, int threads);
void rmsprop_update_f64(ptrdiff_t n, const double *g, double *p, double *square, double *average,
                        double *buffer, double lr, double alpha, double eps, double weight_decay,
                        double momentum, int threads);

/* Adam, or AdamW if `decoupled`; `largest` with amsgrad. `steps` counts this one, from 1. */
void adam_update_f32(ptrdiff_t n, const float *g, float *p, float *average, float *square,
                     float *largest, double lr, double beta1, double beta2, double eps,
                     double weight_decay, int decoupled, ptrdiff_t steps, int threads);
void adam_update_f64(ptrdiff_t n, const double *g, double *p, double *average, double *square,
                     double *largest, double lr, double beta1, double beta2, double eps,
                     double weight_decay, int decoupled, ptrdiff_t steps, int threads);

#endif
