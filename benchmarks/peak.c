/* The multiply-add peak of one core: independent chains in registers, nothing from memory. */
#include <stdint.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define CHAINS 12 /* more than latency times issue width */

typedef float lanes __attribute__((vector_size(LANES * 4)));

/* Runs `rounds` rounds and returns how many floating-point operations that was. */
double peak(int64_t rounds, float factor, float *sink) {
    lanes sum[CHAINS];
    const lanes x = factor + (lanes){0};
    for (int c = 0; c < CHAINS; c++) sum[c] = (lanes){0} + (float)c;
    for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++) sum[c] = sum[c] * x + x;
    }
    for (int c = 1; c < CHAINS; c++) sum[0] += sum[c];
    *sink = sum[0][0];
    return 2.0 * LANES * CHAINS * rounds;
}
