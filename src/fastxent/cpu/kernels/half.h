/* Half precision: float16 (IEEE 754 binary16) and bfloat16 are stored, never computed with.
 *
 * Design a) Conversions are integer operations without branches, which compilers vectorize at every level, and round to
 * nearest, ties to even. From AVX2 on there are instructions for float16, which do the same. Subnormal halves are made
 * and taken apart with normal floats only: arithmetic with subnormal floats costs a hundred cycles, and is switched off
 * in processes that flush them to zero. b) A NaN stays a NaN (its quiet bit is set), and what is too large for a half
 * becomes infinite.
 */
#ifndef FASTXENT_HALF_H
#define FASTXENT_HALF_H

#include "kernels.h"
#include "vector.h"

typedef union {
    float real;
    uint32_t bits;
} FLOAT_BITS;

INLINE float of_float16(uint16_t half)
{
    const uint32_t exponent = half & 0x7c00u, fraction = half & 0x3ffu;
    FLOAT_BITS normal, subnormal;
    normal.bits = ((half & 0x7fffu) << 13) + (exponent == 0x7c00u ? 224u << 23 : 112u << 23);
    subnormal.real = (float)(int32_t)fraction * 0x1p-24f;
    normal.bits = (exponent == 0 ? subnormal.bits : normal.bits) | (uint32_t)(half & 0x8000u) << 16;
    return normal.real;
}

INLINE uint16_t to_float16(float real)
{
    FLOAT_BITS x, aligned;
    x.real = real;
    const uint32_t magnitude = x.bits & 0x7fffffffu, sign = x.bits >> 16 & 0x8000u;
    /* Rounds at the right bit; a carry goes on into the exponent, and from the largest half to infinity. */
    const uint32_t rounded = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    /* Below 2^-14 halves are multiples of 2^-24, which is the last bit of numbers from 0.5 to 1. */
    x.bits = magnitude;
    aligned.real = x.real + 0.5f;
    uint32_t half = magnitude < 113u << 23 ? aligned.bits - (126u << 23) : rounded;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half; /* from 65520 on */
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return (uint16_t)(half | sign);
}

INLINE float of_bfloat16(uint16_t half)
{
    FLOAT_BITS x;
    x.bits = (uint32_t)half << 16;
    return x.real;
}

INLINE uint16_t to_bfloat16(float real)
{
    FLOAT_BITS x;
    x.real = real;
    const uint32_t rounded = (x.bits + 0x7fffu + (x.bits >> 16 & 1u)) >> 16;
    return (uint16_t)((x.bits & 0x7fffffffu) > 0x7f800000u ? (x.bits >> 16 | 0x40u) : rounded);
}

INLINE int is_half(int type) { return type == FX_FLOAT16 || type == FX_BFLOAT16; }

/* Loops of their own for neighbours, which compilers vectorize. */
RARE void read_distant_halves(int type, const uint16_t *p, ptrdiff_t stride, int64_t n, REAL *out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = (REAL)(type == FX_FLOAT16 ? of_float16(p[i * stride]) : of_bfloat16(p[i * stride]));
}

#if REAL_BITS == 32

#if VECTOR_BYTES == 64
#define FLOAT16_VECTORS 1
#define load_float16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))
#define store_float16(p, v) _mm256_storeu_si256((__m256i *)(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT))
#elif VECTOR_BYTES == 32 && defined(__F16C__)
#define FLOAT16_VECTORS 1
#define load_float16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define store_float16(p, v) _mm_storeu_si128((__m128i *)(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT))
#else
#define FLOAT16_VECTORS 0
#define load_float16(p) broadcast(0)
#define store_float16(p, v) ((void)(p), (void)(v))
#endif

/* float16 by instruction, as many whole vectors as there are; returns how many values that was. */
INLINE int64_t read_float16_vectors(const uint16_t *p, int64_t n, REAL *out)
{
    int64_t i = 0;
    for (; FLOAT16_VECTORS && i + LANES <= n; i += LANES) store(out + i, (VECTOR)load_float16(p + i));
    return i;
}
INLINE int64_t write_float16_vectors(const REAL *p, int64_t n, uint16_t *out)
{
    int64_t i = 0;
    for (; FLOAT16_VECTORS && i + LANES <= n; i += LANES) store_float16(out + i, load(p + i));
    return i;
}

NOINLINE void read_halves(int type, const uint16_t *RESTRICT p, ptrdiff_t stride, int64_t n, REAL *RESTRICT out)
{
    if (stride != 1) read_distant_halves(type, p, stride, n, out);
    else if (type == FX_FLOAT16)
        for (int64_t i = read_float16_vectors(p, n, out); i < n; i++) out[i] = (REAL)of_float16(p[i]);
    else
        for (int64_t i = 0; i < n; i++) out[i] = (REAL)of_bfloat16(p[i]);
}

RARE void write_distant_halves(int type, const REAL *p, int64_t n, uint16_t *out, ptrdiff_t stride)
{
    for (int64_t i = 0; i < n; i++)
        out[i * stride] = type == FX_FLOAT16 ? to_float16((float)p[i]) : to_bfloat16((float)p[i]);
}

NOINLINE void write_halves(int type, const REAL *RESTRICT p, int64_t n, uint16_t *RESTRICT out, ptrdiff_t stride)
{
    if (stride != 1) write_distant_halves(type, p, n, out, stride);
    else if (type == FX_FLOAT16)
        for (int64_t i = write_float16_vectors(p, n, out); i < n; i++) out[i] = to_float16((float)p[i]);
    else
        for (int64_t i = 0; i < n; i++) out[i] = to_bfloat16((float)p[i]);
}

#else /* doubles are read from halves where targets or weights are, never written to them */

NOINLINE void read_halves(int type, const uint16_t *RESTRICT p, ptrdiff_t stride, int64_t n, REAL *RESTRICT out)
{ read_distant_halves(type, p, stride, n, out); }
NOINLINE void write_halves(int type, const REAL *RESTRICT p, int64_t n, uint16_t *RESTRICT out, ptrdiff_t stride)
{ (void)type, (void)p, (void)n, (void)out, (void)stride; }

#endif

#endif
