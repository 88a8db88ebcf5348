/* The device, on the CPU: what gpu/port.cuh names and what the CUDA language has, for one cluster of blocks at a time.
 *
 * Every thread is a fiber with a stack of its own; fibers take turns where one has to wait for another. Asynchronous
 * copies happen as late as they may, or (`eager`) at once: a read that does not wait finds poison, a buffer that is used
 * again too early is seen to change. Misaligned vectors and copies, accesses of copies outside shared memory, copies
 * left behind at the end of a block and waits without end are errors. It sees no races that need two threads at once,
 * no missing fences, and nothing about speed.
 */
#define FASTXENT_PORT
#include <cfloat>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <utility>
#include <vector>
#include <immintrin.h>
#include <sys/mman.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

/* Saves the registers that functions must keep, changes stacks, and goes on there. */
asm(".text\n.type fiber_switch, @function\nfiber_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
extern "C" void fiber_switch(void **save, void *to);

namespace emulator {

struct Index {
    unsigned x, y, z;
};

struct Meeting {
    int arrived = 0;
    u64 generation = 0;
};
struct Warp : Meeting {
    u64 slot[2][32][2];
};
struct Arrival {
    int pending = 0;
    i64 bytes = 0;
    u64 phase = 0;
};
struct Copy {
    void *to;
    const void *from;
    size_t bytes;
    u64 *barrier;
};
typedef std::vector<Copy> Copies;

enum { GUARD = 256, STACK = 1 << 16 };

struct Block {
    Index index;
    int rank;
    std::vector<u8> memory; /* guard, shared memory, guard */
    u8 *shared;
    Meeting meeting;
    std::vector<Warp> warps;
    std::map<u64 *, Arrival> arrivals;
    Copies loads; /* bulk loads under way */
};

struct Thread {
    void *stack_pointer;
    Index index;
    Block *block;
    bool done;
    const u64 *waits_for; /* until this is no longer `seen` */
    u64 seen;
    std::vector<Copies> groups; /* of copies to (copy_async) or from (bulk) shared memory; the last one is open */
};

inline Thread *current;
inline void *scheduler;
inline std::vector<Block> blocks;
inline size_t shared_bytes;
inline bool eager;
inline char *message;
inline bool failed;
inline Meeting cluster_meeting;
inline int n_threads, n_cluster;
inline u64 progress;
inline std::function<void()> body;

inline void yield() { fiber_switch(&current->stack_pointer, scheduler); }

inline void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, 500, format, arguments);
    va_end(arguments);
    failed = true;
    yield();
    abort();
}

inline void wait_for_change(const u64 *value, u64 seen)
{
    current->waits_for = value, current->seen = seen;
    while (*value == seen) yield();
    current->waits_for = nullptr;
}

inline void meet(Meeting &meeting, int count)
{
    const u64 generation = meeting.generation;
    if (++meeting.arrived == count) meeting.arrived = 0, meeting.generation++, progress++;
    else wait_for_change(&meeting.generation, generation);
}

inline void perform(const Copy &copy);
inline void complete(u64 *barrier, Block *block)
{
    Arrival &a = block->arrivals[barrier];
    if (a.pending == 0 && a.bytes == 0) a.pending = 1, a.phase++, progress++;
}
inline void perform(const Copy &copy)
{
    memcpy(copy.to, copy.from, copy.bytes);
    if (copy.barrier) {
        current->block->arrivals[copy.barrier].bytes -= (i64)copy.bytes;
        complete(copy.barrier, current->block);
    }
}

inline void check_shared(const void *place, size_t bytes, const char *what)
{
    const u8 *p = (const u8 *)place, *shared = current->block->shared;
    if (p < shared || p + bytes > shared + shared_bytes)
        fail("%s outside shared memory: bytes %td to %td of %zu", what, p - shared, p - shared + (i64)bytes, shared_bytes);
}
inline void check_aligned(const void *place, size_t bytes, const char *what)
{
    if ((uintptr_t)place % 16 || bytes % 16) fail("%s misaligned: %zu bytes at %p", what, bytes, place);
}

inline void enter()
{
    body();
    for (const Copies &group : current->groups)
        if (!group.empty()) fail("copies left behind by thread %u", current->index.x);
    current->done = true;
    progress++;
    yield();
}

/* All blocks, cluster by cluster. */
inline int run(int grid, int threads, int cluster, size_t shared)
{
    n_cluster = cluster;
    static u8 *stacks = nullptr;
    static size_t stack_count = 0;
    const size_t count = (size_t)threads * cluster;
    if (count > stack_count) {
        if (stacks) munmap(stacks, stack_count * STACK);
        stacks = (u8 *)mmap(nullptr, count * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        stack_count = count;
    }
    shared_bytes = shared, n_threads = threads, failed = false;
    if (grid % cluster || threads % 32) return snprintf(message, 500, "a grid of %d x %d", grid, threads);
    for (int first = 0; first < grid; first += cluster) {
        std::vector<Thread> fibers(count);
        blocks.clear();
        blocks.resize(cluster);
        cluster_meeting = Meeting();
        for (int rank = 0; rank < cluster; rank++) {
            Block &block = blocks[rank];
            block.index = {(unsigned)(first + rank), 0, 0};
            block.rank = rank;
            block.memory.assign(shared + 2 * GUARD + 128, 0xA5);
            block.shared = (u8 *)(((uintptr_t)block.memory.data() + GUARD + 127) / 128 * 128);
            block.warps.resize(threads / 32);
            for (int t = 0; t < threads; t++) {
                Thread &thread = fibers[(size_t)rank * threads + t];
                void **top = (void **)(stacks + ((size_t)rank * threads + t + 1) * STACK) - 3;
                *--top = (void *)enter; /* fiber_switch returns to it */
                thread.stack_pointer = top - 6;
                thread.index = {(unsigned)t, 0, 0};
                thread.block = &block;
                thread.done = false, thread.waits_for = nullptr;
                thread.groups.resize(1);
            }
        }
        for (size_t left = count; left;) {
            const u64 before = progress;
            left = 0;
            for (Thread &thread : fibers) {
                if (thread.done) continue;
                left++;
                if (thread.waits_for && *thread.waits_for == thread.seen) continue;
                current = &thread;
                fiber_switch(&scheduler, thread.stack_pointer);
                if (failed) return 1;
                progress += !thread.waits_for;
            }
            if (left && progress == before)
                return snprintf(message, 500, "%zu threads of block %d wait for ever", left, first);
        }
        for (Block &block : blocks) {
            if (!block.loads.empty()) return snprintf(message, 500, "loads left behind by block %u", block.index.x);
            for (u8 *p = block.memory.data(); p < block.memory.data() + block.memory.size(); p++)
                if ((p < block.shared || p >= block.shared + shared) && *p != 0xA5)
                    return snprintf(message, 500, "shared memory written at %td of %zu", p - block.shared, shared);
        }
    }
    return 0;
}

template <class... A, size_t... I>
int launch_with(void (*kernel)(A...), void **arguments, std::index_sequence<I...>, int grid, int threads, int cluster, size_t shared)
{
    body = [=] { kernel(*(typename std::remove_cv<A>::type *)arguments[I]...); };
    return run(grid, threads, cluster, shared);
}
template <class... A> int launch(void (*kernel)(A...), void **arguments, int grid, int threads, int cluster, size_t shared)
{ return launch_with(kernel, arguments, std::index_sequence_for<A...>(), grid, threads, cluster, shared); }

/* As wrong as the CUDA C++ Programming Guide (Mathematical Functions) and the PTX ISA (ex2.approx) allow, either way. */
template <class T> inline T inexact(T exact, int most_ulp)
{
    u64 bits = 0;
    memcpy(&bits, &exact, sizeof exact);
    const u64 mixed = bits * 0x9E3779B97F4A7C15ull >> 40;
    const T ulp = std::nextafter(std::fabs(exact), (T)INFINITY) - std::fabs(exact);
    if (exact == 0 || exact == 1 || !std::isfinite(exact)) return exact;
    return exact + (T)((int)(mixed % (2 * most_ulp + 1)) - most_ulp) * ulp;
}

inline float float_exp(float x) { return inexact((float)std::exp((double)x), 2); }
inline float float_log(float x) { return inexact((float)std::log((double)x), 1); }
inline float float_log1p(float x) { return inexact((float)std::log1p((double)x), 1); }
inline double double_exp(double x) { return inexact(std::exp(x), 1); }
inline double double_log(double x) { return inexact(std::log(x), 1); }
inline double double_log1p(double x) { return inexact(std::log1p(x), 1); }

} // namespace emulator

#define expf emulator::float_exp
#define logf emulator::float_log
#define log1pf emulator::float_log1p
#define exp emulator::double_exp
#define log emulator::double_log
#define log1p emulator::double_log1p

/* ---- the language ---- */

#define DEVICE static inline
#define KERNEL extern "C" void
#define __device__
#define __noinline__ __attribute__((noinline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define threadIdx (emulator::current->index)
#define blockIdx (emulator::current->block->index)
#define SHARED_MEMORY(name) u8 *const name = emulator::current->block->shared
#define INFINITE ((float)INFINITY)
#define NOT_A_NUMBER ((float)NAN)
#define __syncthreads() emulator::meet(emulator::current->block->meeting, emulator::n_threads)
#define __syncwarp() emulator::meet(emulator::current->block->warps[threadIdx.x / 32], 32)
#define __threadfence_system()

static inline u32 atomicCAS(u32 *p, u32 expected, u32 value)
{
    const u32 old = *p;
    if (old == expected) *p = value;
    return old;
}
static inline u32 atomicExch(u32 *p, u32 value)
{
    const u32 old = *p;
    *p = value;
    return old;
}

/* ---- port.cuh ---- */

struct alignas(16) Vector16 {
    u32 word[4];
};

DEVICE float real_of_bits(u32 bits)
{
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
DEVICE float of_float16(u16 half)
{
    _Float16 x;
    memcpy(&x, &half, 2);
    return (float)x;
}
DEVICE u16 to_float16(float x)
{
    const _Float16 half = (_Float16)x;
    u16 bits;
    memcpy(&bits, &half, 2);
    return bits;
}
DEVICE u16 to_bfloat16(float x)
{
    u32 bits;
    memcpy(&bits, &x, 4);
    if (x != x) return 0x7fff;
    return (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
DEVICE float power_of_two(float x) { return emulator::inexact(exp2f(x), 2); }

template <class T> DEVICE T shuffle(T x, int mask)
{
    const unsigned lane = threadIdx.x % 32;
    emulator::Warp &warp = emulator::current->block->warps[threadIdx.x / 32];
    auto &slot = warp.slot[warp.generation & 1];
    memcpy(slot[lane], &x, sizeof x);
    emulator::meet(warp, 32);
    memcpy(&x, slot[lane ^ mask], sizeof x);
    return x;
}

DEVICE bool any_of_warp(bool x)
{
    for (int mask = 16; mask; mask /= 2) x |= shuffle(x, mask);
    return x;
}

DEVICE Vector16 load_streaming(const void *from)
{
    emulator::check_aligned(from, 16, "vector load");
    return *(const Vector16 *)from;
}
DEVICE void store_streaming(void *to, Vector16 v)
{
    emulator::check_aligned(to, 16, "vector store");
    *(Vector16 *)to = v;
}

DEVICE void put_off(void *to, const void *from, size_t bytes)
{
    if (emulator::eager) memcpy(to, from, bytes);
    else emulator::current->groups.back().push_back({to, from, bytes, nullptr});
}
DEVICE void finish_groups(int pending)
{
    auto &groups = emulator::current->groups; /* the last one is still open */
    while ((int)groups.size() - 1 > pending) {
        for (const auto &copy : groups.front()) emulator::perform(copy);
        groups.erase(groups.begin());
    }
}

DEVICE void copy_async(void *to, const void *from)
{
    emulator::check_aligned(to, 16, "copy_async to"), emulator::check_aligned(from, 16, "copy_async from");
    emulator::check_shared(to, 16, "copy_async");
    put_off(to, from, 16);
}
DEVICE void copy_async_commit() { emulator::current->groups.emplace_back(); }
template <int PENDING> DEVICE void copy_async_wait() { finish_groups(PENDING); }

DEVICE void barrier_init(u64 *barrier) { emulator::current->block->arrivals[barrier] = {1, 0, 0}; }
DEVICE void barrier_init_fence() {}
DEVICE void barrier_expect(u64 *barrier, u32 bytes)
{
    emulator::Arrival &a = emulator::current->block->arrivals[barrier];
    a.bytes += bytes, a.pending--;
    emulator::complete(barrier, emulator::current->block);
}
DEVICE void barrier_wait(u64 *barrier, u32 parity)
{
    emulator::Block *block = emulator::current->block;
    emulator::Copies late;
    for (auto &copy : block->loads)
        if (copy.barrier != barrier) late.push_back(copy);
    std::swap(late, block->loads);
    for (auto &copy : late)
        if (copy.barrier == barrier) emulator::perform(copy);
    const emulator::Arrival &a = block->arrivals[barrier];
    /* Odd and even phases: it is over when the current one has the other parity. */
    while ((a.phase & 1) == parity) emulator::wait_for_change(&a.phase, a.phase);
}
DEVICE void bulk_load(void *to, const void *from, u32 bytes, u64 *barrier)
{
    emulator::check_aligned(to, bytes, "bulk_load to"), emulator::check_aligned(from, bytes, "bulk_load from");
    emulator::check_shared(to, bytes, "bulk_load");
    if (emulator::eager) emulator::perform({to, from, bytes, barrier});
    else emulator::current->block->loads.push_back({to, from, bytes, barrier});
}
DEVICE void bulk_store(void *to, const void *from, u32 bytes)
{
    emulator::check_aligned(to, bytes, "bulk_store to"), emulator::check_aligned(from, bytes, "bulk_store from");
    emulator::check_shared(from, bytes, "bulk_store");
    put_off(to, from, bytes);
}
DEVICE void bulk_commit() { emulator::current->groups.emplace_back(); }
template <int PENDING> DEVICE void bulk_wait_read() { finish_groups(PENDING); }
DEVICE void bulk_wait_all() { finish_groups(0); }
DEVICE void bulk_fence() {}

DEVICE u32 cluster_rank() { return (u32)emulator::current->block->rank; }
DEVICE void cluster_barrier() { emulator::meet(emulator::cluster_meeting, emulator::n_threads * emulator::n_cluster); }
DEVICE void store_remote(void *place, u32 rank, u64 bits)
{
    emulator::check_shared(place, 8, "store_remote");
    memcpy(emulator::blocks[rank].shared + ((u8 *)place - emulator::current->block->shared), &bits, 8);
}
