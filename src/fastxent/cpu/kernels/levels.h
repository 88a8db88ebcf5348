/* Which levels this compiler and processor family can build. */
#ifndef FASTXENT_LEVELS_H
#define FASTXENT_LEVELS_H

#if defined(__x86_64__) && defined(__GNUC__) && (!defined(__clang__) || __clang_major__ >= 12) \
    && !defined(FASTXENT_ONE_LANE)
#define FASTXENT_HAS_X86_LEVELS 1
#else
#define FASTXENT_HAS_X86_LEVELS 0
#endif

#endif
