#include "../levels.h"
#if FASTXENT_HAS_X86_LEVELS
#define LEVEL_NAME "avx2"
#define TABLE fx_avx2_float64
#define REAL_BITS 64
#define VECTOR_BYTES 32
#define TARGET_CLANG "avx2,fma,bmi,bmi2,f16c,lzcnt,movbe"
#define TARGET_GCC "arch=x86-64-v3"
#include "../target_begin.h"
#include "../table.h"
#include "../target_end.h"
#endif
