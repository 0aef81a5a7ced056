/* Every kernel of the engine for float32. */
#define REAL_BITS 32
#include "engine.h"
#include "simd.h"

#include "relu.inc"
