/* Turning rows on their side: between rows of classes in memory and vectors whose lanes are rows.
 *
 * Every step is a pair of shuffles that exchange the off-diagonal s x s blocks of two vectors, s = 1, 2, 4, 8; the same
 * pairs, with an operation between, reduce LANES vectors at once (reduce_*: lane i of the result is the sum, or the
 * maximum, over the lanes of vector i).
 */
#ifndef FASTXENT_TRANSPOSE_H
#define FASTXENT_TRANSPOSE_H

#include "vector.h"

#if LANES > 1

/* Lane k of EVEN(s): a[k] in blocks of s with an even number, b[k - s] in the odd ones; of ODD(s): a[k + s] and b[k].
 */
#define EVEN(s, k) (((k) & (s)) ? LANES + (k) - (s) : (k))
#define ODD(s, k) (((k) & (s)) ? LANES + (k) : (k) + (s))
#if LANES == 16
#define ALL_LANES(f, s) \
    f(s, 0), f(s, 1), f(s, 2), f(s, 3), f(s, 4), f(s, 5), f(s, 6), f(s, 7), f(s, 8), f(s, 9), f(s, 10), f(s, 11), \
        f(s, 12), f(s, 13), f(s, 14), f(s, 15)
#elif LANES == 8
#define ALL_LANES(f, s) f(s, 0), f(s, 1), f(s, 2), f(s, 3), f(s, 4), f(s, 5), f(s, 6), f(s, 7)
#elif LANES == 4
#define ALL_LANES(f, s) f(s, 0), f(s, 1), f(s, 2), f(s, 3)
#else
#define ALL_LANES(f, s) f(s, 0), f(s, 1)
#endif
#define SHUFFLE(a, b, f, s) __builtin_shufflevector(a, b, ALL_LANES(f, s))

INLINE VECTOR even_blocks(VECTOR a, VECTOR b, int s)
{
    if (s == 1) return SHUFFLE(a, b, EVEN, 1);
#if LANES > 2
    if (s == 2) return SHUFFLE(a, b, EVEN, 2);
#endif
#if LANES > 4
    if (s == 4) return SHUFFLE(a, b, EVEN, 4);
#endif
#if LANES > 8
    if (s == 8) return SHUFFLE(a, b, EVEN, 8);
#endif
    return a;
}

INLINE VECTOR odd_blocks(VECTOR a, VECTOR b, int s)
{
    if (s == 1) return SHUFFLE(a, b, ODD, 1);
#if LANES > 2
    if (s == 2) return SHUFFLE(a, b, ODD, 2);
#endif
#if LANES > 4
    if (s == 4) return SHUFFLE(a, b, ODD, 4);
#endif
#if LANES > 8
    if (s == 8) return SHUFFLE(a, b, ODD, 8);
#endif
    return a;
}

/* Transpose every width x width block of r[0 .. width - 1] in place; width is a constant power of two. */
INLINE void transpose_blocks(VECTOR *r, const int width)
{
#pragma GCC unroll 4
    for (int s = 1; s < width; s *= 2)
#pragma GCC unroll 16
        for (int i = 0; i < width; i++)
            if (!(i & s)) {
                VECTOR even = even_blocks(r[i], r[i + s], s), odd = odd_blocks(r[i], r[i + s], s);
                r[i] = even;
                r[i + s] = odd;
            }
}

/* In two steps, so that no more than a few vectors are under way: name_few for FEW vectors at a time, and name_fews for
 * the LANES / FEW results of that. */
enum { FEW = LANES < 4 ? LANES : 4 };
#define DEFINE_REDUCTION(name, OPERATION) \
    INLINE VECTOR name##_pair(VECTOR a, VECTOR b, const int s) \
    { return OPERATION(even_blocks(a, b, s), odd_blocks(a, b, s)); } \
    INLINE VECTOR name##_few(const VECTOR *r) \
    { \
        if (FEW == 2) return name##_pair(r[0], r[1], 1); \
        return name##_pair(name##_pair(r[0], r[1], 1), name##_pair(r[2], r[3], 1), 2); \
    } \
    INLINE VECTOR name##_fews(const VECTOR *r) \
    { \
        if (LANES == FEW) return r[0]; \
        if (LANES == 2 * FEW) return name##_pair(r[0], r[1], FEW); \
        return name##_pair(name##_pair(r[0], r[1], FEW), name##_pair(r[2], r[3], FEW), 2 * FEW); \
    } \
    INLINE VECTOR name(const VECTOR *rows) \
    { \
        VECTOR few[LANES / FEW]; \
        for (int i = 0; i < LANES / FEW; i++) few[i] = name##_few(rows + i * FEW); \
        return name##_fews(few); \
    }

/* Vectors made of 2 or 4 pieces of rows. */
#if LANES >= 4
typedef REAL HALF __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef REAL HALF_UNALIGNED __attribute__((vector_size(VECTOR_BYTES / 2), aligned(REAL_BITS / 8), may_alias));
#endif
#if LANES >= 8
typedef REAL QUARTER __attribute__((vector_size(VECTOR_BYTES / 4)));
typedef REAL QUARTER_UNALIGNED __attribute__((vector_size(VECTOR_BYTES / 4), aligned(REAL_BITS / 8), may_alias));
#endif

#if LANES == 16
#define JOIN(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#define JOIN_HALF(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7)
#define LOWER(v) __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7)
#define UPPER(v) __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)
#define LOWER_HALF(h) __builtin_shufflevector(h, h, 0, 1, 2, 3)
#define UPPER_HALF(h) __builtin_shufflevector(h, h, 4, 5, 6, 7)
#elif LANES == 8
#define JOIN(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7)
#define JOIN_HALF(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3)
#define LOWER(v) __builtin_shufflevector(v, v, 0, 1, 2, 3)
#define UPPER(v) __builtin_shufflevector(v, v, 4, 5, 6, 7)
#define LOWER_HALF(h) __builtin_shufflevector(h, h, 0, 1)
#define UPPER_HALF(h) __builtin_shufflevector(h, h, 2, 3)
#elif LANES == 4
#define JOIN(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3)
#define LOWER(v) __builtin_shufflevector(v, v, 0, 1)
#define UPPER(v) __builtin_shufflevector(v, v, 2, 3)
#endif

/* Lanes <- `width` classes of LANES rows, width = LANES, LANES / 2 or LANES / 4 (constant); r[c] gets class c.
 * Reads exactly width values from the start of each row, also where the row has fewer classes. */
INLINE void gather_rows(VECTOR *r, const REAL *p, ptrdiff_t row_stride, const int width)
{
#pragma GCC unroll 16
    for (int q = 0; q < width; q++) {
        const REAL *row = p + q * row_stride;
        if (width == LANES) r[q] = load(row);
#if LANES >= 4
        else if (width == LANES / 2)
            r[q] = JOIN(*(const HALF_UNALIGNED *)row, *(const HALF_UNALIGNED *)(row + width * row_stride));
#endif
#if LANES >= 8
        else {
            const ptrdiff_t next = width * row_stride;
            HALF low = JOIN_HALF(*(const QUARTER_UNALIGNED *)row, *(const QUARTER_UNALIGNED *)(row + next));
            HALF high =
                JOIN_HALF(*(const QUARTER_UNALIGNED *)(row + 2 * next), *(const QUARTER_UNALIGNED *)(row + 3 * next));
            r[q] = JOIN(low, high);
        }
#endif
    }
    transpose_blocks(r, width);
}

/* The reverse: writes exactly width values at the start of each row, in the order of the rows, so that what a row
 * writes past its end is mended by the next one. */
INLINE void scatter_rows(VECTOR *r, REAL *p, ptrdiff_t row_stride, const int width)
{
    transpose_blocks(r, width);
#pragma GCC unroll 4
    for (int piece = 0; piece < LANES / width; piece++)
#pragma GCC unroll 16
        for (int q = 0; q < width; q++) {
            REAL *row = p + (piece * width + q) * row_stride;
            if (width == LANES) store(row, r[q]);
#if LANES >= 4
            else if (width == LANES / 2) *(HALF_UNALIGNED *)row = piece == 0 ? LOWER(r[q]) : UPPER(r[q]);
#endif
#if LANES >= 8
            else {
                HALF half = piece < 2 ? LOWER(r[q]) : UPPER(r[q]);
                *(QUARTER_UNALIGNED *)row = piece % 2 == 0 ? LOWER_HALF(half) : UPPER_HALF(half);
            }
#endif
        }
}

#else /* one lane: a row is its own side */

enum { FEW = 1 };
#define DEFINE_REDUCTION(name, OPERATION) \
    INLINE VECTOR name##_few(const VECTOR *rows) { return rows[0]; } \
    INLINE VECTOR name##_fews(const VECTOR *rows) { return rows[0]; } \
    INLINE VECTOR name(const VECTOR *rows) { return rows[0]; }

INLINE void gather_rows(VECTOR *r, const REAL *p, ptrdiff_t row_stride, const int width)
{
    (void)row_stride, (void)width;
    r[0] = *p;
}
INLINE void scatter_rows(VECTOR *r, REAL *p, ptrdiff_t row_stride, const int width)
{
    (void)row_stride, (void)width;
    *p = r[0];
}

#endif

#define PLUS(a, b) ((a) + (b))
DEFINE_REDUCTION(reduce_sum, PLUS)
DEFINE_REDUCTION(reduce_maximum, maximum)

#endif
