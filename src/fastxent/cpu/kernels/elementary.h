/* exp and log1p on the ranges the losses need, for all lanes, without branches.
 *
 * Design a) exp is needed for x <= 0 only: every loss shifts by the largest logit first. Reduction to |r| <= ln(2)/2
 * after Cody and Waite (Software Manual for the Elementary Functions, 1980, chapter 6), ln(2) in two parts of which the
 * first has enough trailing zeros that n * LN2_HIGH is exact for every n that occurs, also without fused multiply-add.
 * The polynomials come from tools/derive_coefficients.py. b) n is read off the low bits of x * log2(e) + ROUND (adding
 * 1.5 * 2^mantissa bits rounds to an integer). c) Subnormal results are real results (exp(-100) in float32): the power
 * of two is applied in two steps, 2^(n + SPARE) and 2^-SPARE, the first never subnormal, so there is one rounding.
 * AVX-512 has the instruction for this (scalef). d) exp(0) is exactly 1 and exp(-inf) exactly 0; a NaN stays a NaN. e)
 * log1p follows fdlibm's s_log1p.c (Sun Microsystems, 1993; freely usable with this notice) and its float form in
 * FreeBSD's e_logf.c: log(1 + x) = log(u) + (x - (u - 1)) / u with u = 1 + x rounded.
 */
#ifndef FASTXENT_ELEMENTARY_H
#define FASTXENT_ELEMENTARY_H

#include "vector.h"

#if REAL_BITS == 32
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#define SPARE 64 /* of the exponent range, see c) */
#define POWER_OF_MINUS_SPARE 0x1p-64f
#define ROUND 0x1.8p23f
#define EXP_IS_ZERO_BELOW -103.98f /* 2^-150 = exp(-103.972) rounds to 0 */
#define LOG2_E 0x1.715476p0f
#define LN2_HIGH 0.693359375f /* 10 significant bits */
#define LN2_LOW -2.12194440054690582e-4f
static const REAL EXP_POLYNOMIAL[] = {/* largest relative error 0.081 eps */
    0x1.6d10fcp-10f, 0x1.120b62p-7f, 0x1.55551ap-5f, 0x1.5554dep-3f, 0x1p-1f};
static const REAL LOG_POLYNOMIAL[] = {/* Lg4 .. Lg1 of e_logf.c, error below 2^-34.24 */
    0xf89e26p-26f, 0x91e9eep-25f, 0xccce13p-25f, 0xaaaaaap-24f};
static const REAL LOG1P_POLYNOMIAL[] = {/* largest relative error 0.261 eps */
    -0x1.24b298p-8f, 0x1.9d455ap-6f, -0x1.11708cp-4f, 0x1.d992bcp-4f, -0x1.448ee2p-3f, 0x1.969cb2p-3f, -0x1.ffb95cp-3f,
    0x1.55540cp-2f, -0x1.fffffep-2f};
#define SQRT_HALF_BITS 0x3f3504f3
#define SMALLEST_NORMAL 0x1p-126f
#else
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#define SPARE 512
#define POWER_OF_MINUS_SPARE 0x1p-512
#define ROUND 0x1.8p52
#define EXP_IS_ZERO_BELOW -745.14 /* 2^-1075 = exp(-745.133) rounds to 0 */
#define LOG2_E 0x1.71547652b82fep0
#define LN2_HIGH 6.93147180369123816490e-01 /* 32 significant bits */
#define LN2_LOW 1.90821492927058770002e-10
static const REAL EXP_POLYNOMIAL[] = {/* largest relative error 0.072 eps */
    0x1.af389ecfc4b9cp-26, 0x1.28917c89a43a7p-22, 0x1.71de0db2f6b19p-19, 0x1.a019b9149a41cp-16, 0x1.a01a01a7c2efep-13,
    0x1.6c16c17889ef1p-10, 0x1.11111111109b5p-7, 0x1.5555555553d68p-5, 0x1.5555555555556p-3, 0x1.0000000000001p-1};
static const REAL LOG_POLYNOMIAL[] = {/* Lg7 .. Lg1 of s_log1p.c, error below 2^-58.45 */
    1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
    2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01};
static const REAL ATANH_POLYNOMIAL[] = {/* largest relative error 0.032 eps */
    0x1.4b0a26c5f2aefp-24, 0x1.687a6e7c95176p-23, 0x1.eb905e8575054p-21, 0x1.10ac75dc602b1p-18, 0x1.3b18b294bebf9p-16,
    0x1.745cf0b0e03bdp-14, 0x1.c71c727143318p-12, 0x1.24924923d44c6p-9, 0x1.999999999a3ddp-7, 0x1.5555555555555p-4};
#define SQRT_HALF_BITS 0x3fe6a09e667f3bcd
#define SMALLEST_NORMAL 0x1p-1022
#endif

#define COUNT(table) ((int)(sizeof(table) / sizeof((table)[0])))

/* Horner's rule, highest power first. */
INLINE VECTOR polynomial(const REAL *coefficients, int count, VECTOR x)
{
    VECTOR value = broadcast(coefficients[0]);
#pragma GCC unroll 16
    for (int i = 1; i < count; i++) value = value * x + coefficients[i];
    return value;
}

/* exp(x) for x <= 0, within 0.667 eps of every float32 (0.873 without fused multiply-add; make exhaustive). Below the
 * threshold 0 is put in place of a product that would underflow: processors take a hundred cycles over those, and
 * masked logits are common. */
INLINE VECTOR exp_nonpositive(VECTOR x)
{
#if VECTOR_BYTES == 64
    const VECTOR shifter = broadcast(ROUND);
#else
    const VECTOR shifter = broadcast(ROUND + (SPARE + EXPONENT_BIAS));
#endif
    MASK is_zero = less(x, broadcast(EXP_IS_ZERO_BELOW));
    VECTOR shifted = x * LOG2_E + shifter;
    VECTOR n = shifted - shifter;
    VECTOR r = x - n * LN2_HIGH;
    r = r - n * LN2_LOW;
    VECTOR q = polynomial(EXP_POLYNOMIAL, COUNT(EXP_POLYNOMIAL), r);
    VECTOR e = (q * r + (REAL)1) * r + (REAL)1;
#if VECTOR_BYTES == 64
    return MM512(maskz_scalef)(negate(is_zero), e, n);
#else
    return keep(negate(is_zero), e * as_reals((INTEGERS)((WORDS)as_integers(shifted) << MANTISSA_BITS)))
        * POWER_OF_MINUS_SPARE;
#endif
}

/* log(u) + correction for a normal u > 0. */
INLINE VECTOR log_of_normal(VECTOR u, VECTOR correction)
{
    /* Unsigned: lanes that nobody looks at may hold any bits, and signed numbers must not overflow. */
    WORDS bits = (WORDS)as_integers(u);
    INTEGERS exponent = (INTEGERS)(bits - (WORD)SQRT_HALF_BITS) >> MANTISSA_BITS;
    VECTOR f = as_reals((INTEGERS)(bits - ((WORDS)exponent << MANTISSA_BITS)))
        - (REAL)1; /* u = 2^exponent (1 + f), f in [-0.3, 0.42) */
#if LANES > 1
    VECTOR k = __builtin_convertvector(exponent, VECTOR);
#else
    VECTOR k = (VECTOR)exponent;
#endif
    VECTOR s = f / ((REAL)2 + f);
    VECTOR z = s * s;
    VECTOR tail = z * polynomial(LOG_POLYNOMIAL, COUNT(LOG_POLYNOMIAL), z);
    VECTOR half_square = (REAL)0.5 * f * f;
    return k * LN2_HIGH - ((half_square - (s * (half_square + tail) + (k * LN2_LOW + correction))) - f);
}

/* log(x) for 0 <= x < inf, within 0.677 eps of every float32 up to 1: -inf at 0, and subnormal numbers are scaled into
   the normal ones. */
INLINE VECTOR log_of_fraction(VECTOR x)
{
    const MASK is_small = less(x, broadcast(SMALLEST_NORMAL));
    const VECTOR u = choose(is_small, x * (REAL)((INTEGER)1 << MANTISSA_BITS), x);
    const VECTOR log_u = log_of_normal(u, broadcast(0));
    const VECTOR shifted = log_u - (REAL)(MANTISSA_BITS * 0.69314718055994530942);
    const VECTOR of_positive = choose(is_small, shifted, log_u);
    return choose(less(broadcast(0), x), of_positive, choose(equal(x, x), broadcast((REAL)-INFINITY), x));
}

/* log(1 + x) for x >= 0, finite, within 0.687 eps of every float32, with u = 1 + x rounded and its inverse, which the
   callers have anyway. */
INLINE VECTOR log1p_nonnegative(VECTOR x, VECTOR u, VECTOR inverse)
{ return log_of_normal(u, (x - (u - (REAL)1)) * inverse); }

/* The same in powers of the square, with coefficients that are pairs of those: a chain of half the length. Processors
 * see only so many instructions ahead, and long chains fill that window. */
INLINE VECTOR polynomial_of_pairs(const REAL *coefficients, int count, VECTOR x, VECTOR square)
{
    int i = 1 + (count - 1) % 2;
    VECTOR value = i == 1 ? broadcast(coefficients[0]) : coefficients[0] * x + coefficients[1];
#pragma GCC unroll 16
    for (; i < count; i += 2) value = value * square + (coefficients[i] * x + coefficients[i + 1]);
    return value;
}

/* log(1 + e) for 0 <= e <= 1, half the work of the general one, and 1 / (1 + e) if that is wanted. In float32 a
 * polynomial; in float64 that would be of degree 22, and 2 atanh(s / 2) with s = 2 e / (2 + e) <= 2/3 is less. Then
 * both results share one division, the slowest instruction of all by far. The logarithm is within 1.161 eps of every
 * float32 (1.518 without fused multiply-add), and 2.4 eps in float64. */
INLINE VECTOR log1p_and_inverse(VECTOR e, VECTOR *inverse, const int wants_inverse)
{
    const VECTOR one = e + (REAL)1;
#if REAL_BITS == 32
    const VECTOR square = e * e;
    if (wants_inverse) *inverse = (REAL)1 / one;
    return multiply_add(square, polynomial_of_pairs(LOG1P_POLYNOMIAL, COUNT(LOG1P_POLYNOMIAL), e, square), e);
#else
    const VECTOR two = e + (REAL)2, both = (REAL)1 / (one * two), s = (e + e) * (both * one), z = s * s;
    if (wants_inverse) *inverse = both * two;
    return multiply_add(s * z, polynomial_of_pairs(ATANH_POLYNOMIAL, COUNT(ATANH_POLYNOMIAL), z, z * z), s);
#endif
}

INLINE VECTOR log1p_of_fraction(VECTOR e)
{
    VECTOR inverse;
    return log1p_and_inverse(e, &inverse, 0);
}

#endif
