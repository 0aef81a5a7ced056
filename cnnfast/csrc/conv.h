/* The sizes of a convolution, as every kernel is told them:
 *
 *   y[n, f, i, j] = b[f] + sum over c, k, l of
 *                   w[f, c, k, l] * x[n, c, i*SH + k*DH - PT, j*SW + l*DW - PL]
 *
 * with zero outside x. Arrays are in C order: x (N, C, H, W), w (F, C/G, KH, KW), y (N, F, OH, OW).
 * Filters come in G groups that each see C/G channels of their own. Padding below and on the right
 * follows from OH and OW; what of x no window reaches is left unread.
 */
#ifndef CNNFAST_CONV_H
#define CNNFAST_CONV_H

#include <stddef.h>

struct conv {
    ptrdiff_t N, C, H, W;
    ptrdiff_t F, KH, KW, OH, OW;
    ptrdiff_t SH, SW; /* stride */
    ptrdiff_t PT, PL; /* padding at the top and on the left */
    ptrdiff_t DH, DW; /* dilation */
    ptrdiff_t G;      /* groups */
};

#endif
