/* exp(x) and exp(x) - 1 of vectors, to 1.5 units in the last place.
 *
 * With n = round(x / ln 2) and r = x - n ln 2 it is exp(x) = 2^n exp(r), |r| <= ln(2) / 2. ln 2 is
 * taken in two parts, the first so short that n times it is exact (Cody and Waite, "Software Manual
 * for the Elementary Functions", 1980), and exp(r) = 1 + r + r^2 q(r), with a polynomial q that
 * agrees with it in Chebyshev's points; it is off by at most 1.1e-8 and 1.6e-17, relatively.
 */
#ifndef CNNFAST_EXPONENTIAL_H
#define CNNFAST_EXPONENTIAL_H

#include "simd.h"

/* The bits of a vector. Unsigned, because what is shifted may be negative. */
#if REAL_BITS == 32
typedef uint32_t exponential_word;
#else
typedef uint64_t exponential_word;
#endif
#if CNNFAST_VECTOR_BYTES
typedef exponential_word exponential_bits __attribute__((vector_size(CNNFAST_VECTOR_BYTES)));
#else
typedef exponential_word exponential_bits;
#endif

static inline exponential_bits bits_of(vec v)
{
    exponential_bits bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static inline vec from_bits(exponential_bits bits)
{
    vec v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

#if REAL_BITS == 32
enum { EXPONENTIAL_FRACTION = 23, EXPONENTIAL_BIAS = 127 };
#else
enum { EXPONENTIAL_FRACTION = 52, EXPONENTIAL_BIAS = 1023 };
#endif

static inline vec absolute(vec x)
{
    return from_bits(bits_of(x) << 1 >> 1);
}

/* The size of x with the sign of y. */
static inline vec with_sign(vec x, vec y)
{
    return from_bits((bits_of(x) << 1 >> 1) | (bits_of(y) >> (REAL_BITS - 1) << (REAL_BITS - 1)));
}

/* exp(x) = 2^n (1 + p) */
struct exponential {
    vec p;
    exponential_bits n; /* and a multiple of 2^(fraction - 1), which shifts drop */
};

ALWAYS_INLINE struct exponential exponential(vec x)
{
    /* Beyond these all is 0 or infinite. NaN is neither, and passes. */
#if REAL_BITS == 32
    const real least = -105, most = 90;
    const real ln2_high = 0.693145751953125f, ln2_low = 1.4286068203094173e-06f;
    const real q[] = {0.5f, 0.166665763f, 0.0416665561f, 0.00836317893f, 0.0013926184f};
#else
    const real least = -746, most = 711;
    const real ln2_high = 0.6931471805598903, ln2_low = 5.497923018708371e-14;
    const real q[] = {0.5000000000000001,     0.16666666666666669,   0.04166666666662413,
                      0.008333333333330062,   0.0013888888917213717, 0.00019841269863053618,
                      2.4801521295954376e-05, 2.7557268459997064e-06, 2.7620088445409746e-07,
                      2.510038549551032e-08};
#endif
    /* Adding 1.5 * 2^fraction leaves the nearest integer in the last bits. */
    const vec shifter = splat((real)((exponential_word)3 << (EXPONENTIAL_FRACTION - 1)));
    const vec low = splat(least), high = splat(most);
    x = blend(x < low, low, x);
    x = blend(x > high, high, x);
    const vec shifted = x * splat((real)1.4426950408889634) + shifter, n = shifted - shifter;
    const vec r = (x - n * splat(ln2_high)) - n * splat(ln2_low);
    enum { TERMS = sizeof q / sizeof q[0] };
    vec sum = splat(q[TERMS - 1]);
#pragma GCC unroll 16
    for (int i = TERMS - 2; i >= 0; i--)
        sum = sum * r + splat(q[i]);
    return (struct exponential){r + r * r * sum, bits_of(shifted)};
}

/* 2^n for n that is no denormal's exponent. */
static inline vec power_of_2(exponential_bits n)
{
    return from_bits((n + EXPONENTIAL_BIAS) << EXPONENTIAL_FRACTION);
}

/* The halves of n, for results beyond the range of 2^n: infinite or denormal. */
ALWAYS_INLINE vec exp_vec(vec x)
{
    const struct exponential e = exponential(x);
    /* n is in the last bits, as a number of 12; made non-negative, it can be halved by a shift. */
    const exponential_word offset = 2048;
    const exponential_bits n = (e.n + offset) & 4095, half = n >> 1;
    const vec a = power_of_2(half - offset / 2), b = power_of_2((n - half) - offset / 2);
    return (a + a * e.p) * b;
}

/* exp(x) for x <= 0, where what is less than the smallest normal number may become 0. */
ALWAYS_INLINE vec exp_negative(vec x)
{
#if REAL_BITS == 32
    const vec least = splat(-87);
#else
    const vec least = splat(-708);
#endif
    const struct exponential e = exponential(x);
    const vec scale = power_of_2(e.n), zero = splat(0);
    return blend(x < least, zero, scale + scale * e.p);
}

/* exp(x) - 1 for x <= 0. */
ALWAYS_INLINE vec expm1_negative(vec x)
{
#if REAL_BITS == 32
    const vec least = splat(-87);
#else
    const vec least = splat(-708);
#endif
    const struct exponential e = exponential(blend(x < least, least, x));
    const vec scale = power_of_2(e.n);
    return scale * e.p + (scale - splat(1));
}

#endif
