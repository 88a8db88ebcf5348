/* From here to target_end.h code is compiled for TARGET_GCC / TARGET_CLANG; the rest of the extension stays at the
 * platform's own baseline, so that nothing above it can run before the level has been chosen. */
#include "levels.h"
#if FASTXENT_HAS_X86_LEVELS
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#define FASTXENT_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define FASTXENT_TARGET(features) \
    FASTXENT_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
FASTXENT_TARGET(TARGET_CLANG)
#else
#define FASTXENT_TARGET(features) FASTXENT_PRAGMA(GCC target(features))
#pragma GCC push_options
FASTXENT_TARGET(TARGET_GCC)
#if VECTOR_BYTES == 16
/* Few x86 processors still come without AVX2: 19 kB of the wheel are worth more than a tenth of their speed. */
#pragma GCC optimize("Os")
#endif
#endif
#endif
