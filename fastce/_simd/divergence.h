/* Primitives of the Kullback-Leibler divergence of two softmaxes. _divergence.pxd has the formulas, and ce_divergence
 * in primitives.h says what the members are. Vectors run `along` the classes or across the rows: see two_term.h. */

/* log(number / by) from their difference, which keeps its relative accuracy where it is tiny. */
CE_INLINE double FN(log_quotient)(double number, double by, double difference)
{
    double unused;
    const int above = difference >= 0;
    const double log_1 = CE_FN(log1p, CE_ISA, shared)(above ? difference / by : -difference / number, &unused);
    return above ? log_1 : -log_1;
}

/* What the rows' constants are made of, in float64 alone, so that compilers vectorise it. */
CE_INLINE void FN(divergence_constants)(Py_ssize_t rows, const int of_logits, double temperature,
                                        const double *restrict x_max, const double *restrict x_tail,
                                        const double *restrict t_max, const double *restrict t_tail,
                                        const double *restrict given_mass, double *restrict offset,
                                        double *restrict p_factor, double *restrict q_factor, double *restrict x_shift,
                                        double *restrict t_shift, double *restrict gap)
{
    const double largest = CE_F32 ? FLT_MAX : DBL_MAX, unit = CE_ODDS_ONE / (double)EXP_ONE;
    for (Py_ssize_t r = 0; r < rows; r++) {
        const double p_sum = 1 + ce_tail_if_finite(x_tail[r], x_max[r]);
        const double mass = of_logits ? 1 + ce_tail_if_finite(t_tail[r], t_max[r]) : given_mass[r] + 0 * given_mass[r];
        /* Nearly equal logits are subtracted from each other first, which is exact. Then this difference must be exact
         * at the maxima too. */
        const double difference = x_max[r] - t_max[r];
        const int near = of_logits & (fabs(difference) <= temperature) & ((double)(T)difference == difference);
        const double q_unit = (of_logits ? unit : CE_ODDS_ONE) / mass;
        offset[r] = FN(log_quotient)(p_sum, mass, x_tail[r] - t_tail[r]);
        p_factor[r] = unit / p_sum;
        q_factor[r] = q_unit > largest ? largest : q_unit;
        x_shift[r] = near ? 0 : x_max[r];
        t_shift[r] = near ? 0 : t_max[r];
        gap[r] = near ? difference : 0;
    }
}

static void FN(divergence_begin)(ce_divergence *d)
{
    const Py_ssize_t n = d->rows;
    double offset[CE_DIVERGENCE_ROWS], p_factor[CE_DIVERGENCE_ROWS], q_factor[CE_DIVERGENCE_ROWS];
    double x_shift[CE_DIVERGENCE_ROWS], t_shift[CE_DIVERGENCE_ROWS], gap[CE_DIVERGENCE_ROWS];
#define CONSTANTS(of_logits)                                                                                      \
    FN(divergence_constants)(n, of_logits, d->temperature, d->x_max, d->x_tail, d->t_max, d->t_tail, d->mass, offset, \
                             p_factor, q_factor, x_shift, t_shift, gap)
    d->of_logits ? CONSTANTS(1) : CONSTANTS(0);
#undef CONSTANTS
    for (Py_ssize_t r = 0; r < (d->of_logits ? 0 : n); r++)
        d->factor[r] *= d->mass[r];
    FN(narrow)(offset, n, d->offset);
    FN(narrow)(p_factor, n, d->p_factor);
    FN(narrow)(q_factor, n, d->q_factor);
    FN(narrow)(x_shift, n, d->x_shift);
    FN(narrow)(t_shift, n, d->t_shift);
    FN(narrow)(gap, n, d->gap);
    FN(narrow)(d->x_max, n, d->x_top);
    FN(narrow)(d->t_max, n, d->t_top);
    FN(narrow)(d->factor, n, d->scale);
    memset(d->sum.total, 0, n * sizeof(double));
    memset(d->sum.lost, 0, n * sizeof(double));
}

/* What is the same for all classes of a row, or of the rows of a vector. */
typedef struct {
    VEC x_top, t_top, x_shift, t_shift, gap, offset, p_factor, q_factor, scale;
} FN(divergence_rows);

/* One term of the sum, multiplied by CE_ODDS_ONE; *grad is the gradient. Where q is 0, u may be infinite or NaN. */
CE_INLINE VEC FN(divergence_term)(VEC x, VEC t, VEC e_x, VEC e_t, const FN(divergence_rows) * c,
                                  const FN(inverse) * inverse, VEC *grad)
{
    const VEC zero = SET1(0), quarter = SET1((T)0.25);
    const VEC u = FN(cooled)(((x - c->x_shift) - (t - c->t_shift)) - c->gap, inverse) - c->offset, square = u * u;
    const VEC p = e_x * c->p_factor, q = e_t * c->q_factor, excess = q * FN(excess)(u, square), apart = p - q;
    const VEC size = MAX(square, quarter); /* a quarter where |u| <= 1/2 */
    const VEC difference = SELECT_EQ(size, quarter, FMA(q, u, excess), apart);
    const VEC term = SELECT_EQ(size, quarter, excess, zero - FMSUB(q, u, apart));
    *grad = SELECT_EQ(q, zero, p, difference) * c->scale * SET1((T)(1.0 / CE_ODDS_ONE));
    return SELECT_EQ(q, zero, p, term);
}

/* With `stored`, the exponentials are stored in e_x and e_t. */
CE_INLINE void FN(divergence_)(ce_divergence *d, Py_ssize_t classes, const FN(inverse) * inverse, const int with_grad,
                               const int stored, const int along)
{
    const Py_ssize_t vectors = along ? classes / LANES : classes, rest = along ? classes % LANES : 0;
    const T none = (T)-INFINITY; /* what is no class: its p and q are 0 */
    for (Py_ssize_t r = 0; r < d->rows; r += along ? 1 : LANES) {
        const FN(divergence_rows) c = {
            FN(of_row)(d->x_top, r, along),    FN(of_row)(d->t_top, r, along),   FN(of_row)(d->x_shift, r, along),
            FN(of_row)(d->t_shift, r, along),  FN(of_row)(d->gap, r, along),     FN(of_row)(d->offset, r, along),
            FN(of_row)(d->p_factor, r, along), FN(of_row)(d->q_factor, r, along), FN(of_row)(d->scale, r, along),
        };
#define FIRST(member) ce_at(d->member, r *(along ? d->member##_step : (Py_ssize_t)sizeof(T)))
        const T *x_ = FIRST(x), *t_ = FIRST(t), *e_x_ = stored ? FIRST(e_x) : NULL, *e_t_ = stored ? FIRST(e_t) : NULL;
        T *grad_ = with_grad ? FIRST(grad) : NULL;
#undef FIRST
#define AT(member) ((T *)ce_at(member##_, k *(along ? (Py_ssize_t)sizeof(VEC) : d->member##_step)))
#define ADD_TERM(load, store, sum, add)                                                            \
    do {                                                                                           \
        const VEC x = load(AT(x), none), t = load(AT(t), none);                                    \
        VEC grad, e[2];                                                                            \
        if (stored) {                                                                              \
            e[0] = load(AT(e_x), 0);                                                               \
            e[1] = load(AT(e_t), 0);                                                               \
        } else {                                                                                   \
            e[0] = FN(cooled)(x - c.x_top, inverse);                                               \
            e[1] = FN(cooled)(t - c.t_top, inverse);                                               \
            FN(exps)(e, e, 2);                                                                     \
        }                                                                                          \
        add(sum, FN(divergence_term)(x, t, e[0], e[1], &c, inverse, &grad));                       \
        if (with_grad)                                                                             \
            store(AT(grad), grad);                                                                 \
    } while (0)
#define PLUS(sum, v) (sum = sum + (v))
#define LOAD_WHOLE(p, fill) LOAD(p)
#define LOAD_REST(p, fill) LOAD_PART(p, rest, fill)
#define STORE_REST(p, v) STORE_PART(p, v, rest)
        ACC sum = ACC_ZERO;
        Py_ssize_t k = 0;
        while (k < vectors) {
            const Py_ssize_t stop = k + FN(terms) < vectors ? k + FN(terms) : vectors;
            VEC some = SET1(0);
            for (; k < stop; k++)
                ADD_TERM(LOAD_WHOLE, STORE, some, PLUS);
            ACC_ADD(sum, some);
        }
        if (rest)
            ADD_TERM(LOAD_REST, STORE_REST, sum, ACC_ADD);
#undef AT
#undef ADD_TERM
#undef PLUS
#undef LOAD_WHOLE
#undef LOAD_REST
#undef STORE_REST
        FN(add_acc)(&d->sum, r, sum, 1, along);
    }
}

static void FN(divergence)(ce_divergence *d, Py_ssize_t classes)
{
    const FN(inverse) cool = FN(inverse_of)(d->temperature);
#define DIVERGENCE(inverse, stored, along)                                  \
    (d->grad ? FN(divergence_)(d, classes, inverse, 1, stored, along)       \
             : FN(divergence_)(d, classes, inverse, 0, stored, along))
#define DIVERGENCES(stored, along) \
    (d->temperature == 1 ? DIVERGENCE(NULL, stored, along) : DIVERGENCE(&cool, stored, along))
    if (d->along)
        d->e_x ? DIVERGENCES(1, 1) : DIVERGENCES(0, 1);
    else
        d->e_x ? DIVERGENCES(1, 0) : DIVERGENCES(0, 0);
#undef DIVERGENCES
#undef DIVERGENCE
}

static void FN(divergence_finish)(ce_divergence *d)
{
    for (Py_ssize_t r = 0; r < d->rows; r++)
        d->loss[r] = FN(sum_of)(&d->sum, r) * (1.0 / CE_ODDS_ONE);
    for (Py_ssize_t r = 0; r < (d->of_logits ? 0 : d->rows); r++) {
        /* The mass is mass + mass_lost, which counts where it is near 1. */
        const double mass = d->mass[r], log_mass = FN(log_quotient)(mass, 1, (mass - 1) + d->mass_lost[r]);
        d->loss[r] = mass == 0 ? 0 * ce_tail_if_finite(d->x_tail[r], d->x_max[r]) : mass * (d->loss[r] + log_mass);
    }
}
