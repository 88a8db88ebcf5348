#include "../levels.h"
#if FASTXENT_HAS_X86_LEVELS
#define LEVEL_NAME "avx512"
#define TABLE fx_avx512_float32
#define REAL_BITS 32
#define VECTOR_BYTES 64
#define TARGET_CLANG "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,bmi,bmi2,f16c,lzcnt,movbe"
#define TARGET_GCC "arch=x86-64-v4,prefer-vector-width=512"
#include "../target_begin.h"
#include "../table.h"
#include "../target_end.h"
#endif
