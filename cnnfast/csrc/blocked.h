/* Convolutions of 1x1 and of single channels, on images whose channels lie in blocks.
 *
 * A blocked image has the channels that a vector holds side by side: (N, blocks, H, W, lanes), where
 * lanes is what blocked_lanes() tells and the last block is filled up with anything. For networks
 * that go from one such convolution to the next, and turn the image about only before and behind.
 */
#ifndef CNNFAST_BLOCKED_H
#define CNNFAST_BLOCKED_H

#include <stddef.h>

#include "conv.h"

/* Channels in a block. */
ptrdiff_t blocked_lanes_f32(void);
ptrdiff_t blocked_lanes_f64(void);

/* Whether the convolution is one of those that are computed here, with lanes enough in use. */
int blocked_serves_f32(const struct conv *g);
int blocked_serves_f64(const struct conv *g);

/* Elements that _pack writes. */
size_t blocked_packed_f32(const struct conv *g);
size_t blocked_packed_f64(const struct conv *g);

/* Weights and bias (which may be NULL), as _forward wants them. */
void blocked_pack_f32(const struct conv *g, const float *w, const float *b, float *packed);
void blocked_pack_f64(const struct conv *g, const double *w, const double *b, double *packed);

/* y = x * w + b + term, cut off at 0 and at `ceiling` unless that is 0. x, y and `term` are blocked;
 * `term` may be NULL. */
void blocked_forward_f32(const struct conv *g, const float *x, const float *packed,
                         const float *term, double ceiling, float *y, int threads);
void blocked_forward_f64(const struct conv *g, const double *x, const double *packed,
                         const double *term, double ceiling, double *y, int threads);

/* Whether a 1x1 and single channels behind it are better computed together: so much is between them
 * that it would leave the cache. */
int blocked_pair_serves_f32(const struct conv *first, const struct conv *second);
int blocked_pair_serves_f64(const struct conv *first, const struct conv *second);

/* Both, without terms, from the packed weights of each; -1 if there is no memory. */
int blocked_pair_forward_f32(const struct conv *first, const struct conv *second, const float *x,
                             const float *packed, const float *weights, double ceiling,
                             double last_ceiling, float *y, int threads);
int blocked_pair_forward_f64(const struct conv *first, const struct conv *second, const double *x,
                             const double *packed, const double *weights, double ceiling,
                             double last_ceiling, double *y, int threads);

/* Images (N, C, plane) blocked, and as they were before. */
void blocked_block_f32(ptrdiff_t N, ptrdiff_t C, ptrdiff_t plane, const float *x, float *blocked,
                       int threads);
void blocked_block_f64(ptrdiff_t N, ptrdiff_t C, ptrdiff_t plane, const double *x,
                       double *blocked, int threads);
void blocked_unblock_f32(ptrdiff_t N, ptrdiff_t C, ptrdiff_t plane, const float *blocked,
                         float *x, int threads);
void blocked_unblock_f64(ptrdiff_t N, ptrdiff_t C, ptrdiff_t plane, const double *blocked,
                         double *x, int threads);

#endif
