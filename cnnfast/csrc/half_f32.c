/* The families of convolution kernels for float32 once more, with vectors half as wide.
 *
 * Where there are fewer filters, or pixels in a row, than numbers in a vector of 64 bytes, part of
 * every multiplication is for nothing; and each load of one that is not aligned crosses two lines of
 * the cache, as every other of 32 bytes does. So the level with such vectors has these kernels too.
 * For other levels there is nothing in this file.
 */
#if CNNFAST_VECTOR_BYTES == 64
#include "families.h" /* which asks for the level's vectors */

#undef CNNFAST_VECTOR_BYTES
#define CNNFAST_VECTOR_BYTES 32
#define KERNEL(name) name##_f32_half
#define REAL_BITS 32
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
