/* The families of convolution kernels, by name. */
#ifndef CNNFAST_FAMILIES_H
#define CNNFAST_FAMILIES_H

#include "conv.h"

/* The products of one family. Each kernel returns 0, or -1 if there is no memory for its scratch,
 * whose bytes the function next to it tells. pack() writes weights once for many forward passes,
 * into packed() bytes; both are NULL in a family that has nothing to prepare. */
struct family_f32 {
    const char *name;
    int (*forward)(const struct conv *g, const float *x, const float *w, const float *b,
                   double ceiling, float *y, const float *packed, int threads);
    size_t (*forward_scratch)(const struct conv *g, int threads);
    int (*backward_input)(const struct conv *g, const float *dy, const float *w, const float *b,
                          float *dx, int threads);
    size_t (*backward_input_scratch)(const struct conv *g, int threads);
    int (*backward_weights)(const struct conv *g, const float *dy, const float *x, float *dw,
                            int threads);
    size_t (*backward_weights_scratch)(const struct conv *g, int threads);
    int (*pack)(const struct conv *g, const float *w, float *packed, int threads);
    size_t (*packed)(const struct conv *g);
};

struct family_f64 {
    const char *name;
    int (*forward)(const struct conv *g, const double *x, const double *w, const double *b,
                   double ceiling, double *y, const double *packed, int threads);
    size_t (*forward_scratch)(const struct conv *g, int threads);
    int (*backward_input)(const struct conv *g, const double *dy, const double *w,
                          const double *b, double *dx, int threads);
    size_t (*backward_input_scratch)(const struct conv *g, int threads);
    int (*backward_weights)(const struct conv *g, const double *dy, const double *x, double *dw,
                            int threads);
    size_t (*backward_weights_scratch)(const struct conv *g, int threads);
    int (*pack)(const struct conv *g, const double *w, double *packed, int threads);
    size_t (*packed)(const struct conv *g);
};

/* NULL if there is none of that name. */
const struct family_f32 *family_f32(const char *name);
const struct family_f64 *family_f64(const char *name);

/* The same with vectors half as wide, where the level has such kernels too; else those above. */
#if CNNFAST_VECTOR_BYTES == 64
const struct family_f32 *family_f32_half(const char *name);
const struct family_f64 *family_f64_half(const char *name);
#else
#define family_f32_half family_f32
#define family_f64_half family_f64
#endif

#endif
