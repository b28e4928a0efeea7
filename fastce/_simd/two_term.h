/* Primitives of the two-term form of a softmax. _softmax_two_term.pxd has the formulas, and ce_two_term in primitives.h
 * says what the members are.
 *
 * With t the first maximum of a row and m the runner-up, f_j = exp(x_j - m), ratio = exp(m - x_t) and s = 1 + tail,
 * p_j = ratio*f_j/s for j != t. The odds p_j/(1 - p_j) = ratio*f_j/(s - ratio*f_j) are at most 1, and s - ratio*f_j
 * does not cancel, because ratio*f_j <= s/2.
 *
 * The logit of t is -inf and its target is 0 here, so that t adds nothing to a sum. The ratio and everything that it is
 * compared with are multiplied by CE_ODDS_ONE until the end: otherwise they may be subnormal numbers, whose rounding
 * errors weights, sample weights and upstream would multiply. */

static void FN(two_term_maxima)(ce_two_term *t, Py_ssize_t classes)
{
    const T *x = t->x;
    T *row_max = t->row_max, *second = t->second, *first_max = t->first_max;
    for (Py_ssize_t r = 0; r < t->rows; r += LANES) {
        VEC largest = LOAD(row_max + r), next = LOAD(second + r), at = SET1(-1), jv = SET1(0);
        for (Py_ssize_t j = 0; j < classes; j++) {
            const VEC v = LOAD(x + j * t->pitch + r), larger = MAX(v, largest);
            at = SELECT_EQ(larger, largest, at, jv);
            next = MAX(SELECT_EQ(larger, v, largest, v), next);
            largest = larger;
            jv = jv + SET1(1);
        }
        STORE(row_max + r, largest);
        STORE(second + r, next);
        STORE(first_max + r, at);
    }
}

/* The other primitives are written for both ways in which a block may lie. Vectors run across the rows, and each lane
 * is a row; or `along` the classes, and all lanes are of one row. */
CE_INLINE Py_ssize_t FN(rows_in_vector)(const int along) { return along ? 1 : LANES; }
CE_INLINE Py_ssize_t FN(first_vector)(const ce_two_term *t, Py_ssize_t r, const int along)
{
    return along ? r * t->pitch : r;
}
CE_INLINE Py_ssize_t FN(next_vector)(const ce_two_term *t, const int along) { return along ? LANES : t->pitch; }
CE_INLINE Py_ssize_t FN(vectors)(Py_ssize_t classes, const int along)
{
    return along ? (classes + LANES - 1) / LANES : classes;
}
CE_INLINE VEC FN(of_row)(const T *p, Py_ssize_t r, const int along) { return along ? SET1(p[r]) : LOAD(p + r); }
CE_INLINE VEC FN(of_class)(const T *p, Py_ssize_t k, Py_ssize_t classes, const int along)
{
    return along ? FN(load_upto)(p + k * LANES, classes - k * LANES) : SET1(p[k]);
}

/* Adds scale * acc to the sums of row r, or of the rows from r on. */
CE_INLINE void FN(add_acc)(ce_row_sums *sums, Py_ssize_t r, ACC acc, double scale, const int along)
{
    double part[LANES];
    if (along) {
        CE_ADD_COMPENSATED(double, sums->total[r], sums->lost[r], ACC_SUM(acc) * scale);
    } else {
        ACC_STORE(part, acc);
        for (int k = 0; k < LANES; k++)
            CE_ADD_COMPENSATED(double, sums->total[r + k], sums->lost[r + k], part[k] * scale);
    }
}

enum { FN(terms) = 4 }; /* that are added in the dtype before they are added to an accumulator */

CE_INLINE void FN(two_term_sums_)(ce_two_term *t, Py_ssize_t classes, const int store, const int along)
{
    const Py_ssize_t step = FN(next_vector)(t, along), n = FN(vectors)(classes, along);
    const VEC zero = SET1(0), one = SET1(CE_ODDS_ONE);
    const T *row_max_ = t->row_max, *second_ = t->second, *weight = t->weight;
    T *ratio = t->ratio;
    for (Py_ssize_t r = 0; r < t->rows; r += FN(rows_in_vector)(along)) {
        const VEC row_max = FN(of_row)(row_max_, r, along), second = FN(of_row)(second_, r, along);
        const VEC shift = SELECT_EQ(second, SET1((T)-INFINITY), zero, second);
        const T *c_ = (const T *)t->c + FN(first_vector)(t, r, along);
        T *x_ = (T *)t->x + FN(first_vector)(t, r, along);
        ACC exp = ACC_ZERO, a_sum = ACC_ZERO, gap = ACC_ZERO;
        for (Py_ssize_t k = 0; k < n;) {
            const Py_ssize_t stop = k + FN(terms) < n ? k + FN(terms) : n;
            VEC some_exp = zero, some_a = zero, some_gap = zero;
            for (; k < stop; k++) {
                const VEC x = LOAD(x_ + k * step), f = FN(exp)(x - shift);
                VEC a = one * LOAD(c_ + k * step);
                if (weight)
                    a = a * FN(of_class)(weight, k, classes, along);
                if (store)
                    STORE(x_ + k * step, f);
                some_exp = some_exp + f;
                some_a = some_a + a;
                some_gap = some_gap + FN(gap_term)(a, row_max - x);
            }
            ACC_ADD(exp, some_exp);
            ACC_ADD(a_sum, some_a);
            ACC_ADD(gap, some_gap);
        }
        FN(add_acc)(&t->exp, r, exp, EXP_UNSCALE, along);
        FN(add_acc)(&t->a_sum, r, a_sum, 1, along);
        FN(add_acc)(&t->gap, r, gap, 1, along);
        FN(store_upto)(ratio + r, FN(exp)(second - row_max) * SET1((T)(EXP_UNSCALE * CE_ODDS_ONE)),
                       FN(rows_in_vector)(along));
    }
}

static void FN(two_term_sums)(ce_two_term *t, Py_ssize_t classes, int store)
{
    if (t->along)
        store ? FN(two_term_sums_)(t, classes, 1, 1) : FN(two_term_sums_)(t, classes, 0, 1);
    else
        store ? FN(two_term_sums_)(t, classes, 1, 0) : FN(two_term_sums_)(t, classes, 0, 0);
}

/* A sum of row r. What it lost is NaN if it is infinite. */
CE_INLINE double FN(sum_of)(const ce_row_sums *sums, Py_ssize_t r)
{
    return sums->total[r] + (sums->lost[r] == sums->lost[r] ? sums->lost[r] : 0);
}

static void FN(two_term_total)(ce_two_term *t)
{
    const T *row_max = t->row_max, *ratio = t->ratio;
    T *restrict total = t->total;
    for (Py_ssize_t r = 0; r < t->rows; r++) {
        const double tail = ce_tail_if_finite(ratio[r] * FN(sum_of)(&t->exp, r), row_max[r]);
        t->tail[r] = tail;
        total[r] = (T)((1 + tail * (1.0 / CE_ODDS_ONE)) * EXP_ONE);
    }
}

CE_INLINE Py_ssize_t FN(fetched_step)(const ce_fetched *a)
{
    return a->contiguous ? LANES * a->class_stride : a->class_stride;
}

CE_INLINE void FN(two_term_odds_)(ce_two_term *t, Py_ssize_t classes, const int stored, const int add, const int along)
{
    const Py_ssize_t step = FN(next_vector)(t, along), n = FN(vectors)(classes, along);
    const VEC zero = SET1(0), one = SET1(CE_ODDS_ONE), unscale = SET1((T)(1.0 / CE_ODDS_ONE));
    const T *second_ = t->second, *ratio_ = t->ratio, *total_ = t->total, *weight = t->weight;
    const ce_fetched *next_x = &t->next_x, *next_c = &t->next_c, *dst = &t->dst;
    const Py_ssize_t x_step = FN(fetched_step)(next_x), c_step = FN(fetched_step)(next_c);
    const Py_ssize_t dst_step = FN(fetched_step)(dst);
    for (Py_ssize_t r = 0; r < t->rows; r += FN(rows_in_vector)(along)) {
        const VEC ratio = FN(of_row)(ratio_, r, along), total = FN(of_row)(total_, r, along);
        const VEC second = FN(of_row)(second_, r, along);
        const VEC shift = SELECT_EQ(second, SET1((T)-INFINITY), zero, second);
        const Py_ssize_t first = FN(first_vector)(t, r, along);
        const T *c_ = (const T *)t->c + first, *not_c = t->not_c ? (const T *)t->not_c + first : NULL;
        T *x_ = (T *)t->x + first, *h_ = (T *)t->h + first;
        ACC h_sum = ACC_ZERO, log_sum = ACC_ZERO;
        for (Py_ssize_t k = 0; k < n;) {
            const Py_ssize_t stop = k + FN(terms) < n ? k + FN(terms) : n;
            VEC some_h = zero, some_logs = zero;
            for (; k < stop; k++) {
                CE_PREFETCH(next_x->data + r * next_x->row_stride + k * x_step);
                CE_PREFETCH(next_c->data + r * next_c->row_stride + k * c_step);
                CE_PREFETCH_WRITE(dst->data + r * dst->row_stride + k * dst_step);
                const VEC c = LOAD(c_ + k * step);
                VEC f = LOAD(x_ + k * step), a = one * c, b = SET1(1) - c;
                if (not_c)
                    b = LOAD(not_c + k * step);
                if (weight) {
                    const VEC w = FN(of_class)(weight, k, classes, along);
                    a = a * w;
                    b = b * w;
                }
                if (!stored) {
                    f = FN(exp)(f - shift);
                    STORE(x_ + k * step, f);
                }
                const VEC q = f * ratio, others = total - q * unscale, h = FMSUB(b, q / others, a);
                STORE(h_ + k * step, h);
                if (add) {
                    /* log(1 + odds) is 2*atanh(half) with half = odds/(2 + odds) */
                    const VEC half = q / (total + others), small = half * unscale;
                    some_h = some_h + h;
                    some_logs = some_logs + b * FN(log1p_scaled)(half, small * small);
                }
            }
            ACC_ADD(h_sum, some_h);
            ACC_ADD(log_sum, some_logs);
        }
        if (add) {
            FN(add_acc)(&t->h_sum, r, h_sum, 1, along);
            FN(add_acc)(&t->log_sum, r, log_sum, 1, along);
        }
    }
}

static void FN(two_term_odds)(ce_two_term *t, Py_ssize_t classes, int stored, int add)
{
#define TWO_TERM_ODDS(stored, add) \
    (t->along ? FN(two_term_odds_)(t, classes, stored, add, 1) : FN(two_term_odds_)(t, classes, stored, add, 0))
    if (stored)
        TWO_TERM_ODDS(1, 1);
    else if (add)
        TWO_TERM_ODDS(0, 1);
    else
        TWO_TERM_ODDS(0, 0);
#undef TWO_TERM_ODDS
}

static void FN(two_term_finish)(ce_two_term *t)
{
    const double one = CE_ODDS_ONE, unscale = 1.0 / CE_ODDS_ONE;
    const T *row_max = t->row_max, *second = t->second, *ratio = t->ratio;
    T *restrict scale_ = t->scale, *restrict slope = t->slope;
    for (Py_ssize_t r = 0; r < t->rows; r++) {
        const double tail = t->tail[r], tail_1 = tail * unscale, f_sum = FN(sum_of)(&t->exp, r);
        const double a_sum = FN(sum_of)(&t->a_sum, r) * unscale, gap_sum = FN(sum_of)(&t->gap, r);
        const double h_sum = FN(sum_of)(&t->h_sum, r), log_sum = FN(sum_of)(&t->log_sum, r);
        const double a = t->a_max[r], b = t->b_max[r], gap = (double)row_max[r] - second[r], scale = t->factor[r];
        double share, unused;
        const double log_total_1 = CE_FN(log1p, CE_ISA, shared)(tail_1, &share);
        const double log_total = tail < 0x1p-40 ? tail : log_total_1 * one;
        /* log1p(1/tail) = log1p(tail) + gap - log(f_sum) */
        const int confident = gap > 50;
        const double more = f_sum > 1 ? f_sum - 1 : 0;
        const double log_1 = CE_FN(log1p, CE_ISA, shared)(confident ? more : 1 / tail_1, &unused);
        const double log_odds = confident ? log_total_1 + (gap - log_1) : log_1;
        const double b_loss = b == 0 ? 0 : b * log_odds, b_share = b == 0 ? 0 : f_sum > 0 ? b / f_sum : (double)NAN;
        const double loss = (log_sum + gap_sum + (a_sum + a) * log_total + one * b_loss) * unscale;
        t->loss[r] = t->sample[r] == 0 ? 0 : loss * t->sample[r];
        scale_[r] = (T)scale;
        slope[r] = (T)(scale * share * (ratio[r] * (h_sum * unscale - a)) * unscale + scale * share * b_share);
        t->grad_max[r] = scale * share * (one * b - a * tail - h_sum + 0 * b_share) * unscale;
    }
}

CE_INLINE void FN(two_term_grad_)(ce_two_term *t, Py_ssize_t classes, const int along, const int flush)
{
    const Py_ssize_t step = FN(next_vector)(t, along), n = FN(vectors)(classes, along);
    const VEC unscale = SET1((T)(1.0 / CE_ODDS_ONE)), unit = SET1((T)(EXP_UNSCALE * CE_ODDS_ONE));
    const VEC below = SET1((T)t->below);
    const T *scale_ = t->scale, *slope_ = t->slope;
    for (Py_ssize_t r = 0; r < t->rows; r += FN(rows_in_vector)(along)) {
        const VEC scale = FN(of_row)(scale_, r, along), slope = FN(of_row)(slope_, r, along);
        const T *f = (const T *)t->x + FN(first_vector)(t, r, along);
        T *h = (T *)t->h + FN(first_vector)(t, r, along);
        for (Py_ssize_t k = 0; k < n; k++) {
            const VEC scaled = FMSUB(scale, LOAD(h + k * step), slope * (unit * LOAD(f + k * step)));
            VEC g = scaled * unscale;
            if (flush)
                g = FLUSHED(g, below);
            STORE(h + k * step, g);
        }
    }
}

static void FN(two_term_grad)(ce_two_term *t, Py_ssize_t classes)
{
    if (t->along)
        t->below > 0 ? FN(two_term_grad_)(t, classes, 1, 1) : FN(two_term_grad_)(t, classes, 1, 0);
    else
        t->below > 0 ? FN(two_term_grad_)(t, classes, 0, 1) : FN(two_term_grad_)(t, classes, 0, 0);
}
