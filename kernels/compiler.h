/* What every compiled file asks of the compiler. */
#pragma once

#define INLINE static inline __attribute__((always_inline))

/* One version of a function for each kind of x86 processor, chosen when the program is loaded. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__)
#define VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORISED
#endif
