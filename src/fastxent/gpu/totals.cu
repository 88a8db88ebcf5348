/* The divisor of the mean, where only the device knows it, and the sum of what the blocks left, in their order.
 *
 * The divisor is that of DESIGN 2.2: the total weight of what is counted. What is wrong adds nothing here, and is
 * reported by the kernel that computes.
 */
#define WARPS (THREADS / 32)

#if COUNTED == 0
/* Of class indices: a thread has a row. */
DEVICE double weight_of_row(const Job &job, i64 outer, i64 inner, bool live, double *of_warps)
{
    if (!live) return 0;
    const double s = sample_weight_at(job, outer, inner);
    const i64 label = integer_at(at(job.target, outer, inner), job.target_type);
    if ((u64)label >= (u64)job.n_classes || (job.has_ignore_index && label == job.ignore_index) || !is_weight(s))
        return 0;
    return job.class_weight ? s * (double)job.class_weight[label] : s;
}
#elif COUNTED == 1
/* Of distributions: GROUP threads have a row; its sum is that of the first. */
DEVICE double weight_of_row(const Job &job, i64 outer, i64 inner, bool live, double *of_warps)
{
    PairOf<double> masses = {0, 0};
    double elsewhere = 0;
    const char *const row = at(job.target, outer, inner);
    for (i64 c = threadIdx.x % GROUP; c < job.n_classes; c += GROUP) {
        const double t = floating_at<double>(row + c * job.target.klass, job.target_type);
        add(masses, job.class_weight ? (double)job.class_weight[c] * t : t);
        if (c != job.ignore_index && t != 0) elsewhere = 1;
    }
    double sum = total(masses);
    for (int mask = (GROUP < 32 ? GROUP : 32) / 2; mask; mask /= 2)
        sum += shuffle(sum, mask), elsewhere += shuffle(elsewhere, mask);
#if GROUP > 32
    sum = sum_of_block(threadIdx.x % 32 ? 0 : sum, of_warps);
    elsewhere = sum_of_block(threadIdx.x % 32 ? 0 : elsewhere, of_warps);
#endif
    if (!live || threadIdx.x % GROUP) return 0;
    if (job.has_ignore_index && (u64)job.ignore_index < (u64)job.n_classes && elsewhere == 0
        && floating_at<double>(row + job.ignore_index * job.target.klass, job.target_type) > 0)
        return 0;
    const double s = sample_weight_at(job, outer, inner);
    return is_weight(s) && sum >= 0 ? s * sum : 0;
}
#elif COUNTED == 2
/* Of elements, which are rows here: `inner` runs through [inner][class]. */
DEVICE double weight_of_row(const Job &job, i64 outer, i64 inner, bool live, double *of_warps)
{
    if (!live) return 0;
    const i64 row = job.n_inner > 1 ? inner / job.n_classes : 0, c = inner - row * job.n_classes;
    const char *const t = at(job.target, outer, row) + c * job.target.klass;
    const double s = job.sample_weight.data
        ? double_at(at(job.sample_weight, outer, row) + c * job.sample_weight.klass, job.sample_weight_type)
        : 1;
    const bool is_ignored = job.has_ignore_index
        && (job.target_type < FLOAT16 ? integer_at(t, job.target_type) == job.ignore_index
                                      : double_at(t, job.target_type) == (double)job.ignore_index);
    return is_ignored || !is_weight(s) ? 0 : s;
}
#endif

#ifdef COUNTED
KERNEL __launch_bounds__(THREADS, BLOCKS) divisor(const __grid_constant__ Job job)
{
    SHARED_MEMORY(shared_memory);
    const i64 per_outer = job.n_inner * (COUNTED == 2 ? job.n_classes : 1);
    const i64 rows = job.n_outer * per_outer, begin = (i64)blockIdx.x * job.tile_rows;
    PairOf<double> weights = {0, 0};
    for (int i = 0; i < job.tile_rows; i += THREADS / GROUP) {
        const i64 row = begin + i + threadIdx.x / GROUP;
        const bool live = i + (int)threadIdx.x / GROUP < job.tile_rows && row < rows;
        const i64 kept = live ? row : rows - 1, outer = job.n_outer > 1 ? kept / per_outer : 0;
        add(weights, weight_of_row(job, outer, kept - outer * per_outer, live, (double *)shared_memory));
    }
    const double sum = sum_of_block(total(weights), (double *)shared_memory);
    if (threadIdx.x == 0) job.partial[blockIdx.x] = sum;
}
#else
/* The sum of `count` numbers, over the divisor: one on the device, or that of the job. Where that is 0 so is the mean.
 * A sum that will be a divisor (`is_divisor`) has to be finite. */
KERNEL __launch_bounds__(THREADS, BLOCKS)
    add_up(const __grid_constant__ Job job, i64 count, double host_divisor, int is_divisor, double *out)
{
    SHARED_MEMORY(shared_memory);
    PairOf<double> partials = {0, 0};
    for (i64 i = threadIdx.x; i < count; i += THREADS) add(partials, (double)job.partial[i]);
    const double sum = sum_of_block(total(partials), (double *)shared_memory);
    if (threadIdx.x) return;
    const double divisor = job.divisor ? *job.divisor : host_divisor;
    if (is_divisor && !is_finite(sum)) report(job, BAD_DIVISOR, 0, 0, sum);
    *out = divisor == 0 ? 0 : sum / divisor;
}
#endif
