/* Every kernel of the engine for float32. */
#define REAL_BITS 32
#include "simd.h"

#include "conv.h"
#include "families.h"
#include "memory.h"
#include "workers.h"

#include "depthwise.inc"
#include "direct.inc"
#include "elementwise.inc"
#include "gemm.inc"
#include "gemm_blocks.inc"
#include "blocked.inc"
#include "gemm_weights.inc"
#include "loss.inc"
#include "matmul.inc"
#include "norm.inc"
#include "peak.inc"
#include "pool.inc"
#include "update.inc"
#include "winograd.inc"

#include "families.inc"
