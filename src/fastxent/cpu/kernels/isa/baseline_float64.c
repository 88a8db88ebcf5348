#define LEVEL_NAME "baseline"
#define TABLE fx_baseline_float64
#define REAL_BITS 64
#if defined(__GNUC__) && (!defined(__clang__) || __clang_major__ >= 12) && !defined(FASTXENT_ONE_LANE)
#define VECTOR_BYTES 16
#else
#define VECTOR_BYTES 0
#endif
#define TARGET_CLANG "sse4.2,popcnt"
#define TARGET_GCC "arch=x86-64-v2"
#include "../target_begin.h"
#include "../table.h"
#include "../target_end.h"
