/* Primitives of the Kullback-Leibler divergence of two softmaxes. _divergence.pxd has the formulas, and ce_divergence
 * in primitives.h says what the members are. Vectors run `along` the classes or across the rows: see two_term.h. */

static void FN(divergence_begin)(ce_divergence *d)
{
    T *x_shift = d->x_shift, *t_shift = d->t_shift, *gap = d->gap, *offset = d->offset;
    T *p_factor = d->p_factor, *q_factor = d->q_factor, *scale = d->scale;
    const double largest = CE_F32 ? FLT_MAX : DBL_MAX, q_one = d->of_logits ? EXP_ONE : 1;
    for (Py_ssize_t r = 0; r < d->rows; r++) {
        const double x_tail = ce_tail_if_finite(d->x_tail[r], d->x_max[r]);
        const double t_tail = ce_tail_if_finite(d->t_tail[r], d->t_max[r]), more = x_tail - t_tail;
        const double mass = d->of_logits ? 1 + t_tail : d->mass[r] + 0 * t_tail;
        double unused;
        /* log((1 + x_tail) / mass), which keeps its relative accuracy where it is tiny */
        const double log_1 = CE_FN(log1p, CE_ISA, shared)(more >= 0 ? more / mass : -more / (1 + x_tail), &unused);
        offset[r] = (T)(more >= 0 ? log_1 : -log_1);
        /* Nearly equal logits are subtracted from each other first, which is exact. Then this difference must be exact
         * at the maxima too. */
        const double difference = d->x_max[r] - d->t_max[r];
        const int near = d->of_logits && fabs(difference) <= d->temperature && (T)difference == difference;
        x_shift[r] = near ? 0 : (T)d->x_max[r];
        t_shift[r] = near ? 0 : (T)d->t_max[r];
        gap[r] = near ? (T)difference : 0;
        p_factor[r] = (T)(CE_ODDS_ONE / (double)EXP_ONE / (1 + x_tail));
        const double factor = CE_ODDS_ONE / (mass * q_one);
        q_factor[r] = (T)(factor > largest ? largest : factor);
        scale[r] = (T)(d->of_logits ? d->factor[r] : d->factor[r] * d->mass[r]);
        d->sum.total[r] = d->sum.lost[r] = 0;
    }
}

/* What is the same for all classes of a row, or of the rows of a vector. */
typedef struct {
    VEC x_shift, t_shift, gap, offset, p_factor, q_factor, scale;
} FN(divergence_rows);

/* One term of the sum, multiplied by CE_ODDS_ONE; *grad is the gradient. Where q is 0, u may be infinite or NaN. */
CE_INLINE VEC FN(divergence_term)(VEC x, VEC t, VEC e_x, VEC e_t, const FN(divergence_rows) * c,
                                  const FN(inverse) * inverse, VEC *grad)
{
    const VEC zero = SET1(0), half = SET1((T)0.5);
    const VEC u = FN(cooled)(((x - c->x_shift) - (t - c->t_shift)) - c->gap, inverse) - c->offset;
    const VEC p = e_x * c->p_factor, q = e_t * c->q_factor, excess = FN(excess)(u);
    const VEC size = MAX(MAX(u, zero - u), half); /* half where |u| <= 1/2 */
    const VEC difference = SELECT_EQ(size, half, q * (u + excess), p - q);
    const VEC term = SELECT_EQ(size, half, q * excess, (p - q) - q * u);
    *grad = SELECT_EQ(q, zero, p, difference) * c->scale * SET1((T)(1.0 / CE_ODDS_ONE));
    return SELECT_EQ(q, zero, p, term);
}

CE_INLINE void FN(divergence_)(ce_divergence *d, Py_ssize_t classes, const FN(inverse) * inverse, const int with_grad,
                               const int along)
{
    const Py_ssize_t vectors = along ? classes / LANES : classes, rest = along ? classes % LANES : 0;
    for (Py_ssize_t r = 0; r < d->rows; r += along ? 1 : LANES) {
        const FN(divergence_rows) c = {
            FN(of_row)(d->x_shift, r, along),  FN(of_row)(d->t_shift, r, along), FN(of_row)(d->gap, r, along),
            FN(of_row)(d->offset, r, along),   FN(of_row)(d->p_factor, r, along), FN(of_row)(d->q_factor, r, along),
            FN(of_row)(d->scale, r, along),
        };
#define FIRST(member) ce_at(d->member, r *(along ? d->member##_step : (Py_ssize_t)sizeof(T)))
        const T *x_ = FIRST(x), *t_ = FIRST(t), *e_x_ = FIRST(e_x), *e_t_ = FIRST(e_t);
        T *grad_ = with_grad ? FIRST(grad) : NULL;
#undef FIRST
#define AT(member) ((T *)ce_at(member##_, k *(along ? (Py_ssize_t)sizeof(VEC) : d->member##_step)))
        ACC sum = ACC_ZERO;
        VEC grad;
        Py_ssize_t k = 0;
        while (k < vectors) {
            const Py_ssize_t stop = k + FN(terms) < vectors ? k + FN(terms) : vectors;
            VEC some = SET1(0);
            for (; k < stop; k++) {
                some = some + FN(divergence_term)(LOAD(AT(x)), LOAD(AT(t)), LOAD(AT(e_x)), LOAD(AT(e_t)), &c, inverse,
                                                  &grad);
                if (with_grad)
                    STORE(AT(grad), grad);
            }
            ACC_ADD(sum, some);
        }
        if (rest) {
            ACC_ADD(sum, FN(divergence_term)(LOAD_PART(AT(x), rest, 0), LOAD_PART(AT(t), rest, 0),
                                             LOAD_PART(AT(e_x), rest, 0), LOAD_PART(AT(e_t), rest, 0), &c, inverse,
                                             &grad));
            if (with_grad)
                STORE_PART(AT(grad), grad, rest);
        }
#undef AT
        FN(add_acc)(&d->sum, r, sum, 1, along);
    }
}

static void FN(divergence)(ce_divergence *d, Py_ssize_t classes)
{
    const FN(inverse) cool = FN(inverse_of)(d->temperature);
#define DIVERGENCE(inverse, along) \
    (d->grad ? FN(divergence_)(d, classes, inverse, 1, along) : FN(divergence_)(d, classes, inverse, 0, along))
    if (d->along)
        d->temperature == 1 ? DIVERGENCE(NULL, 1) : DIVERGENCE(&cool, 1);
    else
        d->temperature == 1 ? DIVERGENCE(NULL, 0) : DIVERGENCE(&cool, 0);
#undef DIVERGENCE
}

static void FN(divergence_finish)(ce_divergence *d)
{
    for (Py_ssize_t r = 0; r < d->rows; r++) {
        const double loss = FN(sum_of)(&d->sum, r) * (1.0 / CE_ODDS_ONE), mass = d->mass[r];
        double unused;
        d->loss[r] = loss;
        if (!d->of_logits) {
            const double log_1 = CE_FN(log1p, CE_ISA, shared)(mass >= 1 ? mass - 1 : (1 - mass) / mass, &unused);
            d->loss[r] = mass == 0 ? 0 * d->x_tail[r] : mass * (loss + (mass >= 1 ? log_1 : -log_1));
        }
    }
}
