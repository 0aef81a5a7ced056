/* The families of convolution kernels for float64 once more; see half_f32.c. */
#if CNNFAST_VECTOR_BYTES == 64
#include "families.h" /* which asks for the level's vectors */

#undef CNNFAST_VECTOR_BYTES
#define CNNFAST_VECTOR_BYTES 32
#define KERNEL(name) name##_f64_half
#define REAL_BITS 64
#include "simd.h"

#include "memory.h"
#include "workers.h"

#include "depthwise.inc"
#include "direct.inc"
#include "gemm.inc"
#include "gemm_blocks.inc"
#include "gemm_weights.inc"
#include "winograd.inc"

#include "families.inc"
#endif
