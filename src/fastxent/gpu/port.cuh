/* What is particular to the device: names for PTX, shuffles, copies, barriers. It needs no header, so that NVRTC needs
 * no toolkit. The emulator of the tests brings its own version of this file, and of no other. */
#ifndef FASTXENT_PORT
#define FASTXENT_PORT
#pragma nv_diag_suppress 177 /* no variant calls every function */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE static __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#define SHARED_MEMORY(name) extern __shared__ __align__(128) u8 name[]
#define INFINITE (__int_as_float(0x7f800000))
#define NOT_A_NUMBER (__int_as_float(0x7fc00000))

struct __align__(16) Vector16 {
    u32 word[4];
};

DEVICE float real_of_bits(u32 bits) { return __uint_as_float(bits); }
DEVICE float of_float16(u16 half)
{
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
    return x;
}
DEVICE u16 to_float16(float x)
{
    u16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
    return half;
}
DEVICE u16 to_bfloat16(float x)
{
    u16 half;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half) : "f"(x));
    return half;
}

/* 2^x within 2^-22 (PTX ISA, ex2.approx.ftz.f32), one instruction. */
DEVICE float power_of_two(float x)
{
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

template <class T> DEVICE T shuffle(T x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEVICE bool any_of_warp(bool x) { return __any_sync(0xffffffffu, x); }

/* Nothing comes back to either soon: no place in the first-level cache, and evicted first from the second. */
DEVICE Vector16 load_streaming(const void *from)
{
    Vector16 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
        : "l"(from)
        : "memory");
    return v;
}
DEVICE void store_streaming(void *to, Vector16 v)
{
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.word[0]), "r"(v.word[1]),
        "r"(v.word[2]), "r"(v.word[3])
        : "memory");
}

DEVICE u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

/* ---- copies to shared memory by every thread (from 8.0 on) ---- */

DEVICE void copy_async(void *to, const void *from)
{ asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory"); }
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> DEVICE void copy_async_wait()
{ asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

#if BULK
/* ---- bulk copies (from 9.0 on): one thread asks, a barrier in shared memory tells when all bytes are there ---- */

DEVICE void barrier_init(u64 *barrier)
{ asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory"); }
DEVICE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_expect(u64 *barrier, u32 bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
        : "memory");
}
DEVICE void barrier_wait(u64 *barrier, u32 parity)
{
    asm volatile("{.reg .pred p;\n"
                 "WAIT%=: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra WAIT%=;}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}
DEVICE void bulk_load(void *to, const void *from, u32 bytes, u64 *barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
        "l"(from), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
}
DEVICE void bulk_store(void *to, const void *from, u32 bytes)
{
    asm volatile(
        "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)), "r"(bytes)
        : "memory");
}
DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/* Until all but the last PENDING groups of this thread have read their shared memory; or have written, too. */
template <int PENDING> DEVICE void bulk_wait_read()
{ asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory"); }
DEVICE void bulk_wait_all() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
/* Makes what this thread wrote to shared memory visible to bulk copies. */
DEVICE void bulk_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#endif

#if CLUSTER > 1
/* ---- clusters (from 9.0 on): blocks that see each other's shared memory ---- */

DEVICE u32 cluster_rank()
{
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
DEVICE void cluster_barrier()
{ asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory"); }
/* Write 8 bytes where block `rank` has the variable `place` of its shared memory. */
DEVICE void store_remote(void *place, u32 rank, u64 bits)
{
    u32 there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(place)), "r"(rank));
    asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(there), "l"(bits) : "memory");
}
#endif

#endif
