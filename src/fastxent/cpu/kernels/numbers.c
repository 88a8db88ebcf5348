/* Numbers of any type, wherever they lie, as the few types that kernels compute with. */
#include "kernels.h"

#if defined(_MSC_VER) && !defined(__clang__)
#define RESTRICT __restrict
#else
#define RESTRICT __restrict__
#endif

#define AT_MOST_INT64(value) ((value) > INT64_MAX ? INT64_MAX : (int64_t)(value))
#define AS_INT64(value) ((int64_t)(value))
#define AS_FLOAT(value) ((float)(value))
#define AS_DOUBLE(value) ((double)(value))

/* A loop for neighbours and one for the others: the first is what compilers vectorize. */
#define READ(type, AS) \
    { \
        const type *p = (const type *)data + offset; \
        if (stride == 1) \
            for (int64_t i = 0; i < n; i++) out[i] = AS(p[i]); \
        else \
            for (int64_t i = 0; i < n; i++) out[i] = AS(p[i * stride]); \
    } \
    break
#define READ_INTEGERS(AS, AS_FROM_UINT64) \
    case FX_INT8: READ(int8_t, AS); \
    case FX_INT16: READ(int16_t, AS); \
    case FX_INT32: READ(int32_t, AS); \
    case FX_INT64: READ(int64_t, AS); \
    case FX_UINT8: READ(uint8_t, AS); \
    case FX_UINT16: READ(uint16_t, AS); \
    case FX_UINT32: READ(uint32_t, AS); \
    case FX_UINT64: READ(uint64_t, AS_FROM_UINT64)

void fx_read_labels(const void *data, int type, ptrdiff_t offset, ptrdiff_t stride, int64_t n, int64_t *RESTRICT out)
{
    switch (type) {
        READ_INTEGERS(AS_INT64, AT_MOST_INT64);
    default: break;
    }
}

void fx_read_floats(const void *data, int type, ptrdiff_t offset, ptrdiff_t stride, int64_t n, float *RESTRICT out)
{
    switch (type) {
        READ_INTEGERS(AS_FLOAT, AS_FLOAT);
    case FX_FLOAT32: READ(float, AS_FLOAT);
    case FX_FLOAT64: READ(double, AS_FLOAT);
    default: break;
    }
}

void fx_read_doubles(const void *data, int type, ptrdiff_t offset, ptrdiff_t stride, int64_t n, double *RESTRICT out)
{
    switch (type) {
        READ_INTEGERS(AS_DOUBLE, AS_DOUBLE);
    case FX_FLOAT32: READ(float, AS_DOUBLE);
    case FX_FLOAT64: READ(double, AS_DOUBLE);
    default: break;
    }
}
