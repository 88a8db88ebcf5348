/* The levels compiled in, best first, and whether this machine runs them. */
#include "kernels.h"
#include "levels.h"

/* Past the share of the last-level cache that two cores of a large server have; measured, see benchmarks/NOTES.md. */
int64_t fx_stream_bytes = 16 << 20;

extern const fx_table fx_baseline_float32, fx_baseline_float64;
#if FASTXENT_HAS_X86_LEVELS
extern const fx_table fx_avx2_float32, fx_avx2_float64, fx_avx512_float32, fx_avx512_float64;
#endif

const fx_level FX_LEVELS[] = {
#if FASTXENT_HAS_X86_LEVELS
    {"avx512", &fx_avx512_float32, &fx_avx512_float64},
    {"avx2", &fx_avx2_float32, &fx_avx2_float64},
#endif
    {"baseline", &fx_baseline_float32, &fx_baseline_float64},
    {NULL, NULL, NULL},
};

#if FASTXENT_HAS_X86_LEVELS
/* __builtin_cpu_supports also asks whether the system saves the wide registers (XGETBV). */
/* F16C, which compilers cannot all be asked for, is older than AVX2 in every processor. */
static int runs_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi")
        && __builtin_cpu_supports("bmi2");
}
static int runs_avx512(void)
{
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl");
}
#endif

int fx_usable(const fx_level *level)
{
#if FASTXENT_HAS_X86_LEVELS
    if (level == &FX_LEVELS[0]) return runs_avx512();
    if (level == &FX_LEVELS[1]) return runs_avx2();
    return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
#else
    (void)level;
    return 1;
#endif
}
