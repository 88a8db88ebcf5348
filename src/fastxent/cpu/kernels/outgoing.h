/* Results on their way out past the caches, a vector at a time between other work, so that memory is never idle.
 *
 * Parts (rows, or chunks of one) of `length` values each go from the first-level cache to where they belong, times a
 * factor each. Streaming stores write whole lines only. Where one part ends in the middle of a line and the next goes
 * on there, the beginning of the line is carried over; an ordinary store would fetch it from memory, and all later
 * stores would wait for that.
 */
#ifndef FASTXENT_OUTGOING_H
#define FASTXENT_OUTGOING_H

#include "vector.h"

typedef struct {
    const REAL *from; /* the parts, `step` apart, and where they go, `to_step` apart */
    REAL *to;
    ptrdiff_t step, to_step;
    int64_t length, last_length, parts;
    const REAL *factors; /* of each part; NULL: 1 */
    REAL addend;         /* to all products */

    int64_t begun; /* parts; of the last one begun: */
    const REAL *next;
    REAL *out;             /* where the next line goes */
    int64_t vectors, tail; /* still to go */
    REAL factor;
    int64_t carried; /* values of the line at `out`, which the part before has left */
    REAL line[LANES];
} OUTGOING;

/* What is carried from the parts before goes on. */
INLINE void outgoing_begin(OUTGOING *outgoing, const REAL *from, ptrdiff_t step, int64_t length, int64_t last_length,
    int64_t parts, const REAL *factors, REAL *to, ptrdiff_t to_step)
{
    outgoing->from = from, outgoing->step = step, outgoing->to = to, outgoing->to_step = to_step;
    outgoing->length = length, outgoing->last_length = last_length, outgoing->parts = parts,
    outgoing->factors = factors;
    outgoing->begun = outgoing->vectors = outgoing->tail = 0;
    outgoing->addend = 0;
}

/* Write what is carried; nothing follows it there. */
INLINE void outgoing_flush(OUTGOING *outgoing)
{
    if (outgoing->carried) store_first(outgoing->out, load(outgoing->line), (int)outgoing->carried);
    outgoing->carried = 0;
    outgoing->out = NULL;
}

INLINE VECTOR outgoing_product(const OUTGOING *outgoing, VECTOR v)
{ return multiply_add(v, broadcast(outgoing->factor), broadcast(outgoing->addend)); }

/* The next n < LANES values, as far as they fit the line. */
INLINE void carry(OUTGOING *outgoing, const REAL *from, int64_t n)
{
    store_first(outgoing->line + outgoing->carried, outgoing_product(outgoing, load_first(from, (int)n, 0)), (int)n);
    outgoing->carried += n;
}

/* Called when no vector is left: go on to the next part that has one. */
NOINLINE int outgoing_next(OUTGOING *outgoing)
{
    for (;;) {
        if (outgoing->tail) carry(outgoing, outgoing->next, outgoing->tail);
        outgoing->tail = 0;
        if (outgoing->begun == outgoing->parts) return 0;
        const REAL *from = outgoing->from + outgoing->begun * outgoing->step;
        REAL *to = outgoing->to + outgoing->begun * outgoing->to_step;
        outgoing->factor = outgoing->factors ? outgoing->factors[outgoing->begun] : 1;
        int64_t n = ++outgoing->begun == outgoing->parts ? outgoing->last_length : outgoing->length, head;
        const int is_aligned = (uintptr_t)outgoing->out % (VECTOR_BYTES + !VECTOR_BYTES) == 0;
        if (!outgoing->out || !is_aligned || to != outgoing->out + outgoing->carried) {
            outgoing_flush(outgoing);
            head = (int64_t)((0 - (uintptr_t)to) % (VECTOR_BYTES + !VECTOR_BYTES) / sizeof(REAL));
            if (head > n) head = n;
            store_first(to, outgoing_product(outgoing, load_first(from, (int)head, 0)), (int)head);
            outgoing->out = to + head;
        } else {
            head = outgoing->carried ? LANES - outgoing->carried : 0;
            if (head > n) head = n;
            if (head) carry(outgoing, from, head);
            if (outgoing->carried == LANES) {
                stream_store(outgoing->out, load(outgoing->line));
                outgoing->out += LANES;
                outgoing->carried = 0;
            }
        }
        outgoing->next = from + head;
        outgoing->vectors = (n - head) / LANES;
        outgoing->tail = (n - head) % LANES;
        if (outgoing->vectors) return 1;
    }
}

/* Stream at most `most` vectors. */
INLINE void outgoing_some(OUTGOING *outgoing, int64_t most)
{
    while (most > 0 && (outgoing->vectors || outgoing_next(outgoing))) {
        const int64_t n = outgoing->vectors < most ? outgoing->vectors : most;
        for (int64_t i = 0; i < n; i++)
            stream_store(outgoing->out + i * LANES, outgoing_product(outgoing, load(outgoing->next + i * LANES)));
        outgoing->out += n * LANES, outgoing->next += n * LANES, outgoing->vectors -= n;
        most -= n;
    }
}

/* All of it, but for what is carried. */
INLINE void outgoing_rest(OUTGOING *outgoing) { outgoing_some(outgoing, INT64_MAX); }

#endif
