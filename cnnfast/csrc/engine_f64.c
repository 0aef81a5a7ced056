/* Every kernel of the engine for float64. */
#define REAL_BITS 64
#include "engine.h"
#include "simd.h"

#include "relu.inc"
