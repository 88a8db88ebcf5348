/* Lanes: the vector type of one dtype at one instruction-set level, and the few operations the kernels need.
 *
 * In:  REAL_BITS (32 or 64) and VECTOR_BYTES (16, 32, 64; 0 for one lane). Out: REAL, INTEGER and WORD (integers as
 * wide, signed and unsigned), VECTOR, INTEGERS, WORDS, MASK, LANES and the functions below.
 *
 * Design a) Arithmetic is written with the operators of GNU vector types, so that a formula reads the same for any
 * width. Comparisons and selections go through functions, because AVX-512 keeps masks in registers of their own and GCC
 * 12 otherwise spends three instructions on a selection. b) Compilers without GNU vectors get LANES == 1: VECTOR is
 * then REAL itself, and the same formulas compile. c) maximum(a, b) is `a > b ? a : b`: b comes back when either is
 * NaN, so that maximum(x, running) skips a NaN in x. This is exactly what maxps does; fmax does not.
 */
#ifndef FASTXENT_VECTOR_H
#define FASTXENT_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <stddef.h>
#include <string.h>

#if VECTOR_BYTES && (defined(__x86_64__) || defined(__i386__))
#include <immintrin.h>
#define STREAMING_STORES 1
#endif

#if REAL_BITS == 32
typedef float REAL;
typedef int32_t INTEGER;
typedef uint32_t WORD;
#define REAL_TYPE FX_FLOAT32
#define REAL_LARGEST 0x1.fffffep127f
#define REAL_SMALLEST 0x1p-149f
#define REAL_EPSILON 1.1920928955078125e-07f
#else
typedef double REAL;
typedef int64_t INTEGER;
typedef uint64_t WORD;
#define REAL_TYPE FX_FLOAT64
#define REAL_LARGEST 0x1.fffffffffffffp1023
#define REAL_SMALLEST 0x1p-1074
#define REAL_EPSILON 2.220446049250313e-16
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define INLINE static __forceinline
#define NOINLINE static __declspec(noinline)
#define RARE NOINLINE
#define OFTEN
#define RESTRICT __restrict
#define UNLIKELY(condition) (condition)
#define IS_CONSTANT(value) 0
#define prefetch(address) ((void)(address))
#define prefetch_far(address) ((void)(address))
#define prefetch_to_write(address) ((void)(address))
#else
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))   /* where copies would only make the extension larger */
#define RARE static __attribute__((noinline, cold)) /* small rather than fast */
#if VECTOR_BYTES == 16 && !defined(__clang__)
#define OFTEN __attribute__((optimize("O2"))) /* fast rather than small even in the level that is compiled for size */
#else
#define OFTEN
#endif
#define RESTRICT __restrict__
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)
#define IS_CONSTANT(value) __builtin_constant_p(value)
#define prefetch(address) __builtin_prefetch(address)
#define prefetch_far(address) __builtin_prefetch(address, 0, 2) /* to the second-level cache */
#define prefetch_to_write(address) __builtin_prefetch(address, 1)
#endif

#if VECTOR_BYTES

#define LANES (VECTOR_BYTES * 8 / REAL_BITS)
typedef REAL VECTOR __attribute__((vector_size(VECTOR_BYTES)));
typedef INTEGER INTEGERS __attribute__((vector_size(VECTOR_BYTES)));
typedef WORD WORDS __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL VECTOR_UNALIGNED __attribute__((vector_size(VECTOR_BYTES), aligned(REAL_BITS / 8), may_alias));

INLINE VECTOR broadcast(REAL x) { return x - (VECTOR){0}; }
INLINE INTEGERS broadcast_integer(INTEGER i) { return i - (INTEGERS){0}; }
INLINE VECTOR load(const REAL *p) { return *(const VECTOR_UNALIGNED *)p; }
INLINE void store(REAL *p, VECTOR v) { *(VECTOR_UNALIGNED *)p = v; }
INLINE VECTOR as_reals(INTEGERS v) { return (VECTOR)v; }
INLINE INTEGERS as_integers(VECTOR v) { return (INTEGERS)v; }

#else

#define LANES 1
typedef REAL VECTOR;
typedef INTEGER INTEGERS;
typedef WORD WORDS;

INLINE VECTOR broadcast(REAL x) { return x; }
INLINE INTEGERS broadcast_integer(INTEGER i) { return i; }
INLINE VECTOR load(const REAL *p) { return *p; }
INLINE void store(REAL *p, VECTOR v) { *p = v; }
INLINE VECTOR as_reals(INTEGERS v)
{
    VECTOR x;
    memcpy(&x, &v, sizeof x);
    return x;
}
INLINE INTEGERS as_integers(VECTOR v)
{
    INTEGERS i;
    memcpy(&i, &v, sizeof i);
    return i;
}

#endif

/* Doubles, as many as a vector holds. */
#if VECTOR_BYTES
typedef double DOUBLES __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
#else
typedef double DOUBLES;
#endif
enum { DOUBLE_LANES = sizeof(DOUBLES) / sizeof(double) };
INLINE DOUBLES load_doubles(const double *p) { return *(const DOUBLES *)p; }

/* Masks: less(a, b), equal(a, b), unequal(a, b), same(i, j) for integers, both(m, n), negate(m), any(m),
 * first_lanes(n), count_of(m); choose(m, a, b) is a where m holds; keep(m, a) is a where m holds and 0 elsewhere;
 * add_where(m, a, b) is a + b where m holds and a elsewhere. */

#if VECTOR_BYTES == 64

#if REAL_BITS == 32
#define MM512(operation) _mm512_##operation##_ps
#define MM512I(operation) _mm512_##operation##_epi32
typedef __mmask16 MASK;
#else
#define MM512(operation) _mm512_##operation##_pd
#define MM512I(operation) _mm512_##operation##_epi64
typedef __mmask8 MASK;
#endif
#if REAL_BITS == 32
INLINE MASK less(VECTOR a, VECTOR b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
INLINE MASK equal(VECTOR a, VECTOR b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
INLINE MASK unequal(VECTOR a, VECTOR b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
INLINE MASK same(INTEGERS a, INTEGERS b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
#else
INLINE MASK less(VECTOR a, VECTOR b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
INLINE MASK equal(VECTOR a, VECTOR b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
INLINE MASK unequal(VECTOR a, VECTOR b) { return _mm512_cmp_pd_mask(a, b, _CMP_NEQ_UQ); }
INLINE MASK same(INTEGERS a, INTEGERS b) { return _mm512_cmpeq_epi64_mask((__m512i)a, (__m512i)b); }
#endif
INLINE MASK both(MASK a, MASK b) { return (MASK)(a & b); }
INLINE MASK negate(MASK m) { return (MASK)~m; }
INLINE int any(MASK m) { return m != 0; }
INLINE VECTOR choose(MASK m, VECTOR a, VECTOR b) { return MM512(mask_blend)(m, b, a); }
INLINE VECTOR keep(MASK m, VECTOR a) { return MM512(maskz_mov)(m, a); }
INLINE VECTOR add_where(MASK m, VECTOR a, VECTOR b) { return MM512(mask_add)(a, m, a, b); }
INLINE VECTOR maximum(VECTOR a, VECTOR b) { return MM512(max)(a, b); }
INLINE MASK first_lanes(int n) { return (MASK)((1u << n) - 1u); }
INLINE VECTOR load_first(const REAL *p, int n, REAL fill)
{ return MM512(mask_loadu)(broadcast(fill), first_lanes(n), p); }
INLINE void store_first(REAL *p, VECTOR v, int n) { MM512(mask_storeu)(p, first_lanes(n), v); }

#elif VECTOR_BYTES

typedef INTEGERS MASK;
INLINE MASK less(VECTOR a, VECTOR b) { return (MASK)(a < b); }
INLINE MASK equal(VECTOR a, VECTOR b) { return (MASK)(a == b); }
INLINE MASK unequal(VECTOR a, VECTOR b) { return (MASK)(a != b); }
INLINE MASK same(INTEGERS a, INTEGERS b) { return (MASK)(a == b); }
INLINE MASK both(MASK a, MASK b) { return a & b; }
INLINE MASK negate(MASK m) { return ~m; }
INLINE VECTOR keep(MASK m, VECTOR a) { return (VECTOR)((INTEGERS)a & m); }
INLINE VECTOR add_where(MASK m, VECTOR a, VECTOR b) { return a + keep(m, b); }

#if VECTOR_BYTES == 32 && defined(__AVX__) && REAL_BITS == 32
INLINE int any(MASK m) { return _mm256_movemask_ps((__m256)m) != 0; }
INLINE VECTOR choose(MASK m, VECTOR a, VECTOR b) { return _mm256_blendv_ps(b, a, (__m256)m); }
INLINE VECTOR maximum(VECTOR a, VECTOR b) { return _mm256_max_ps(a, b); }
#elif VECTOR_BYTES == 32 && defined(__AVX__)
INLINE int any(MASK m) { return _mm256_movemask_pd((__m256d)m) != 0; }
INLINE VECTOR choose(MASK m, VECTOR a, VECTOR b) { return _mm256_blendv_pd(b, a, (__m256d)m); }
INLINE VECTOR maximum(VECTOR a, VECTOR b) { return _mm256_max_pd(a, b); }
#elif VECTOR_BYTES == 16 && defined(__SSE4_1__) && REAL_BITS == 32
INLINE int any(MASK m) { return _mm_movemask_ps((__m128)m) != 0; }
INLINE VECTOR choose(MASK m, VECTOR a, VECTOR b) { return _mm_blendv_ps(b, a, (__m128)m); }
INLINE VECTOR maximum(VECTOR a, VECTOR b) { return _mm_max_ps(a, b); }
#elif VECTOR_BYTES == 16 && defined(__SSE4_1__)
INLINE int any(MASK m) { return _mm_movemask_pd((__m128d)m) != 0; }
INLINE VECTOR choose(MASK m, VECTOR a, VECTOR b) { return _mm_blendv_pd(b, a, (__m128d)m); }
INLINE VECTOR maximum(VECTOR a, VECTOR b) { return _mm_max_pd(a, b); }
#else
INLINE int any(MASK m)
{
    INTEGER found = 0;
    for (int lane = 0; lane < LANES; lane++) found |= m[lane];
    return found != 0;
}
INLINE VECTOR choose(MASK m, VECTOR a, VECTOR b) { return (VECTOR)(((INTEGERS)a & m) | ((INTEGERS)b & ~m)); }
INLINE VECTOR maximum(VECTOR a, VECTOR b) { return choose((MASK)(a > b), a, b); }
#endif

INLINE MASK first_lanes(int n)
{
#if LANES == 8
    const INTEGERS numbers = {0, 1, 2, 3, 4, 5, 6, 7};
#elif LANES == 4
    const INTEGERS numbers = {0, 1, 2, 3};
#else
    const INTEGERS numbers = {0, 1};
#endif
    return (MASK)(numbers < (INTEGER)n);
}

/* Masked loads and stores never touch the lanes left out, so nothing is read or written past a row. */
#if VECTOR_BYTES == 32 && defined(__AVX2__)
INLINE VECTOR load_first(const REAL *p, int n, REAL fill)
{
    const MASK taken = first_lanes(n);
#if REAL_BITS == 32
    return choose(taken, _mm256_maskload_ps(p, (__m256i)taken), broadcast(fill));
#else
    return choose(taken, _mm256_maskload_pd(p, (__m256i)taken), broadcast(fill));
#endif
}
INLINE void store_first(REAL *p, VECTOR v, int n)
{
#if REAL_BITS == 32
    _mm256_maskstore_ps(p, (__m256i)first_lanes(n), v);
#else
    _mm256_maskstore_pd(p, (__m256i)first_lanes(n), v);
#endif
}
#else
INLINE VECTOR load_first(const REAL *p, int n, REAL fill)
{
    VECTOR v = broadcast(fill);
    for (int lane = 0; lane < LANES; lane++)
        if (lane < n) v[lane] = p[lane];
    return v;
}
INLINE void store_first(REAL *p, VECTOR v, int n)
{
    for (int lane = 0; lane < LANES; lane++)
        if (lane < n) p[lane] = v[lane];
}
#endif

#else /* one lane */

typedef int MASK;
INLINE MASK less(VECTOR a, VECTOR b) { return a < b; }
INLINE MASK equal(VECTOR a, VECTOR b) { return a == b; }
INLINE MASK unequal(VECTOR a, VECTOR b) { return a != b; }
INLINE MASK same(INTEGERS a, INTEGERS b) { return a == b; }
INLINE MASK both(MASK a, MASK b) { return a & b; }
INLINE MASK negate(MASK m) { return !m; }
INLINE int any(MASK m) { return m; }
INLINE VECTOR choose(MASK m, VECTOR a, VECTOR b) { return m ? a : b; }
INLINE VECTOR keep(MASK m, VECTOR a) { return m ? a : 0; }
INLINE VECTOR add_where(MASK m, VECTOR a, VECTOR b) { return m ? a + b : a; }
INLINE MASK first_lanes(int n) { return n > 0; }
INLINE VECTOR maximum(VECTOR a, VECTOR b) { return a > b ? a : b; }
INLINE VECTOR load_first(const REAL *p, int n, REAL fill) { return n > 0 ? *p : fill; }
INLINE void store_first(REAL *p, VECTOR v, int n)
{
    if (n > 0) *p = v;
}

#endif

/* How many lanes of a mask hold. */
INLINE INTEGER count_of(MASK m)
{
#if VECTOR_BYTES == 64
    return (INTEGER)__builtin_popcount(m);
#elif VECTOR_BYTES == 32 && defined(__AVX__) && REAL_BITS == 32
    return (INTEGER)__builtin_popcount((unsigned)_mm256_movemask_ps((__m256)m));
#elif VECTOR_BYTES == 32 && defined(__AVX__)
    return (INTEGER)__builtin_popcount((unsigned)_mm256_movemask_pd((__m256d)m));
#elif VECTOR_BYTES == 16 && defined(__SSE4_2__) && REAL_BITS == 32
    return (INTEGER)__builtin_popcount((unsigned)_mm_movemask_ps((__m128)m));
#elif VECTOR_BYTES == 16 && defined(__SSE4_2__)
    return (INTEGER)__builtin_popcount((unsigned)_mm_movemask_pd((__m128d)m));
#elif LANES > 1
    INTEGER count = 0;
    for (int lane = 0; lane < LANES; lane++) count -= m[lane];
    return count;
#else
    return m;
#endif
}

/* LANES integers as REAL numbers. */
INLINE VECTOR numbers_of(const INTEGER *integers)
{
#if LANES > 1
    INTEGERS v;
    memcpy(&v, integers, sizeof v);
    return __builtin_convertvector(v, VECTOR);
#else
    return (VECTOR)*integers;
#endif
}

/* a b + c, rounded once where the level can, in every copy of the code alike: left to the compiler, it may be either
 * product of a b + c d that is not rounded. */
INLINE VECTOR multiply_add(VECTOR a, VECTOR b, VECTOR c)
{
#if VECTOR_BYTES == 64
    return MM512(fmadd)(a, b, c);
#elif VECTOR_BYTES == 32 && defined(__FMA__) && REAL_BITS == 32
    return _mm256_fmadd_ps(a, b, c);
#elif VECTOR_BYTES == 32 && defined(__FMA__)
    return _mm256_fmadd_pd(a, b, c);
#else
    return a * b + c;
#endif
}

/* Sign bits, also of zeros: a mask of those that are set, and v with the sign turned where that of z is set. */
INLINE MASK has_sign(VECTOR z)
{
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    return _mm512_movepi32_mask((__m512i)z);
#elif VECTOR_BYTES == 64
    return _mm512_movepi64_mask((__m512i)z);
#elif VECTOR_BYTES == 32 && defined(__AVX__) || VECTOR_BYTES == 16 && defined(__SSE4_1__)
    return as_integers(z); /* blends look at nothing else */
#else
    return as_integers(z) < 0;
#endif
}
INLINE VECTOR turn(VECTOR v, VECTOR z)
{ return as_reals(as_integers(v) ^ (as_integers(z) & as_integers(broadcast((REAL)-0.0)))); }

INLINE VECTOR absolute(VECTOR v) { return maximum(v, -v); } /* of a NaN, a NaN */
INLINE MASK not_finite(VECTOR v) { return negate(less(absolute(v), broadcast((REAL)INFINITY))); }

/* A load of up to LANES values: all of them on the way, the first n at the end of a row. */
INLINE VECTOR load_up_to(const REAL *p, int64_t n, REAL fill)
{ return n >= LANES ? load(p) : load_first(p, (int)n, fill); }
INLINE void store_up_to(REAL *p, VECTOR v, int64_t n)
{
    if (n >= LANES) store(p, v);
    else store_first(p, v, (int)n);
}

/* Write factor times n values out. `stream` bypasses the caches (non-temporal stores), which saves the read for
 * ownership of lines that nobody will look at soon; the caller ends its run of streams with stream_fence(). */
#ifdef STREAMING_STORES
INLINE void stream_store(REAL *p, VECTOR v)
{
#if VECTOR_BYTES == 64 && REAL_BITS == 32
    _mm512_stream_ps(p, v);
#elif VECTOR_BYTES == 64
    _mm512_stream_pd(p, v);
#elif VECTOR_BYTES == 32 && REAL_BITS == 32
    _mm256_stream_ps(p, v);
#elif VECTOR_BYTES == 32
    _mm256_stream_pd(p, v);
#elif REAL_BITS == 32
    _mm_stream_ps(p, v);
#else
    _mm_stream_pd(p, v);
#endif
}
#else
#define stream_store store
#endif

INLINE void scale_out(REAL *out, const REAL *from, VECTOR factor, int64_t n, int stream)
{
    int64_t i = 0;
    if (stream) {
        i = (int64_t)((0 - (uintptr_t)out) % (VECTOR_BYTES + !VECTOR_BYTES) / sizeof(REAL));
        if (i > n) i = n;
        store_up_to(out, load_up_to(from, i, 0) * factor, i);
        for (; i + LANES <= n; i += LANES) stream_store(out + i, load(from + i) * factor);
    } else
        for (; i + LANES <= n; i += LANES) store(out + i, load(from + i) * factor);
    if (i < n) store_first(out + i, load_first(from + i, (int)(n - i), 0) * factor, (int)(n - i));
}

INLINE void copy_out(REAL *RESTRICT out, const REAL *RESTRICT from, int64_t n, int stream)
{
    if (stream) scale_out(out, from, broadcast(1), n, 1);
    else memcpy(out, from, (size_t)n * sizeof(REAL));
}

INLINE void stream_fence(void)
{
#ifdef STREAMING_STORES
    _mm_sfence();
#endif
}

#endif
