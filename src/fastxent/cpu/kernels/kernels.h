/* The interface between the engine (Cython) and the kernels (C): a job, a table of functions, a choice of tables. */
#ifndef FASTXENT_KERNELS_H
#define FASTXENT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum fx_task {
    FX_CROSS_ENTROPY,
    FX_FOCAL,
    FX_SOFTMAX,
    FX_LOG_SOFTMAX,
    FX_LOGSUMEXP, /* along the class axis */
    FX_BINARY_CROSS_ENTROPY,
    FX_BINARY_FOCAL,
    FX_SIGMOID,
    FX_LOG_SIGMOID /* element by element */
};
enum fx_inputs { FX_LOGITS, FX_LOG_PROBS, FX_PROBS };
enum fx_type {
    FX_INT8,
    FX_INT16,
    FX_INT32,
    FX_INT64,
    FX_UINT8,
    FX_UINT16,
    FX_UINT32,
    FX_UINT64,
    FX_FLOAT16,
    FX_BFLOAT16,
    FX_FLOAT32,
    FX_FLOAT64 /* from here on floating */
};
enum fx_regime { FX_TILE, FX_SHORT_ROWS, FX_ROWS, FX_LONG_ROWS, FX_PLAIN_ROWS, FX_ELEMENTS };
enum fx_flaw { FX_BAD_TARGET = 1, FX_BAD_WEIGHT = 2 };

/* An array seen as [outer][inner][class]; strides in elements. `inner` is the axis along which a block of rows runs. */
typedef struct {
    void *data;
    ptrdiff_t outer, inner, klass;
} fx_array;

/* One call, the same for all blocks. The engine fills the first part, plan() the second. Where data may be NULL, that
 * means not given, or not wanted. For the elementwise tasks `class` is but the axis of the smallest stride, and target,
 * sample_weight and loss have it too. */
typedef struct {
    int64_t n_outer, n_inner, n_classes;
    fx_array logits;          /* fx_type real_type, as are loss, grad and hess */
    fx_array target;          /* fx_type target_type; klass unused for class indices */
    fx_array sample_weight;   /* fx_type sample_weight_type (floating); NULL: 1 */
    fx_array pos_weight;      /* REAL; NULL: 1 */
    fx_array loss;            /* may be NULL; for FX_LOGSUMEXP the result */
    fx_array grad, hess;      /* may be NULL; for the activations grad is the result */
    const void *class_weight; /* REAL[n_classes], NULL: 1 */
    double label_smoothing;
    double divisor;      /* of gradient and Hessian: 1, or that of the mean */
    double gamma, alpha; /* of the focal losses; alpha negative: none */
    int64_t ignore_index;
    int has_ignore_index;
    int task, inputs, real_type, target_type, sample_weight_type;
    int unsurveyed; /* elementwise losses: compute() looks at the targets; NaN where one is wrong */

    int regime, stream;
    int64_t rows_per_block, n_blocks_per_outer, n_blocks;
    size_t scratch_bytes; /* per thread, to be aligned to FX_ALIGNMENT */
} fx_job;

#define FX_ALIGNMENT 64

/* n numbers of a type, `stride` elements apart, from element `offset` of data on. The first takes integers, the others
 * integers, float32 and float64. An unsigned 64-bit label beyond int64 becomes the largest of these, which is no class
 * and no ignore_index. numbers.c is compiled once, not per level. */
void fx_read_labels(const void *data, int type, ptrdiff_t offset, ptrdiff_t stride, int64_t n, int64_t *out);
void fx_read_floats(const void *data, int type, ptrdiff_t offset, ptrdiff_t stride, int64_t n, float *out);
void fx_read_doubles(const void *data, int type, ptrdiff_t offset, ptrdiff_t stride, int64_t n, double *out);

/* One dtype at one level. Functions of a block may run concurrently for different blocks, each with its own scratch. */
typedef struct {
    const char *level;
    int lanes;
    void (*plan)(fx_job *job);
    /* The divisor of the mean that this block contributes; `flaws` collects enum fx_flaw. Reads target and weights
       only. */
    double (*survey)(const fx_job *job, int64_t block, int *flaws);
    /* Writes the block's loss, gradient and Hessian; returns the sum of its losses. */
    double (*compute)(const fx_job *job, int64_t block, void *scratch);
    /* For tests: exp_nonpositive, log1p_nonnegative, log1p_of_fraction or log_of_fraction of n values. */
    void (*elementary)(int which, const void *x, void *y, int64_t n);
} fx_table;

typedef struct {
    const char *level;
    const fx_table *float32, *float64;
} fx_level;

/* The levels compiled in, best first, ended by a NULL name; usable: does this processor (and its system) run it? */
extern const fx_level FX_LEVELS[];
int fx_usable(const fx_level *level);

/* Bytes of gradient from which on it is streamed past the caches. */
extern int64_t fx_stream_bytes;

#endif
