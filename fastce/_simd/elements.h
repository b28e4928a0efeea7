/* Primitives that treat every element alike. */

/* With y = x / cap and e = exp(-2|y|), tanh(|y|) = 1 - 2e/(1 + e) and 1 - tanh(y)^2 = 4e/(1 + e)^2. Where y is small, the
 * first difference cancels, and a polynomial serves. The second does not cancel there. Often all logits are small, and
 * then neither exponentials nor quotients are needed. Each element is computed alike in both cases. */
static void FN(softcap)(const void *x_, Py_ssize_t n, double cap_, void *z_, void *slope_)
{
    const T *x = x_;
    T *z = z_, *slope = slope_;
    const FN(inverse) inverse = FN(inverse_of)(cap_);
    const T cap = (T)cap_; /* a float32 may not hold the cap: its relative error is made up for */
    const VEC rest = SET1((T)((cap_ - cap) / cap_)), one_scaled = SET1(EXP_ONE);
    const VEC zero = SET1(0), one = SET1(1), two = SET1(2), limit = SET1((T)(25. / 64));
    for (Py_ssize_t i = 0; i < n; i += LANES) {
        const VEC s = FN(load_upto)(x + i, n - i), y = FN(cooled)(s, &inverse), u = y * y;
        const VEC near = MAX(u, limit), excess = FN(tanh_excess)(u), t = FMA(y, excess, y); /* limit where x is NaN */
        VEC capped = FMA(s, excess, s), derivative = zero;
        if (slope)
            derivative = FMA(zero - t, t, one);
        if (EQ_BITS(near, limit) != (1u << LANES) - 1) {
            const VEC size = MAX(zero - s, s), e = FN(exp)(zero - two * MAX(zero - y, y));
            const VEC share = one / (one_scaled + e), part = two * e * share;
            const VEC bound = SELECT_EQ(size, s, SET1(cap), SET1(-cap));
            const VEC large = SELECT_EQ(size, SET1((T)INFINITY), s, FMA(bound, rest - part, bound));
            capped = SELECT_EQ(near, limit, capped, large);
            derivative = SELECT_EQ(near, limit, derivative, two * one_scaled * share * part);
        }
        FN(store_upto)(z + i, capped, n - i);
        if (slope)
            FN(store_upto)(slope + i, MAX(derivative, zero), n - i);
    }
}

static void FN(row_affine)(const void *c_, const void *weight_, Py_ssize_t n, double slope, double offset, void *q_)
{
    const T *c = c_, *weight = weight_;
    T *q = q_;
    for (Py_ssize_t i = 0; i < n; i += LANES) {
        VEC t = FMA(SET1((T)slope), FN(load_upto)(c + i, n - i), SET1((T)offset));
        if (weight)
            t = t * FN(load_upto)(weight + i, n - i);
        FN(store_upto)(q + i, t, n - i);
    }
}

static void FN(flush_small)(void *x_, Py_ssize_t n, double below)
{
    T *x = x_;
    for (Py_ssize_t i = 0; i < n; i += LANES)
        FN(store_upto)(x + i, FLUSHED(FN(load_upto)(x + i, n - i), SET1((T)below)), n - i);
}

/* Adds the losses of `turns` vectors, or of one vector's first n < LANES numbers, to acc.
 *
 * From z to its loss, each operation waits for the one before. The work is therefore done in stages, each with a short
 * loop over the vectors: a processor then overlaps the operations of several vectors. */
#define SIGMOID_TURNS 32
CE_INLINE void FN(sigmoid_turns)(const T *z_, const T *target, const T *other, const T *positive, const T *weight,
                                 Py_ssize_t turns, Py_ssize_t n, T scale, T *loss, T *grad, ACC *acc)
{
    const VEC zero = SET1(0), one = SET1(1);
    VEC e[SIGMOID_TURNS], large[SIGMOID_TURNS], rest[SIGMOID_TURNS], sum = zero;
    for (Py_ssize_t k = 0; k < turns; k++) { /* exp(-|z|). MAX of two NaN is NaN. */
        const VEC z = FN(load_upto)(z_ + k * LANES, n);
        e[k] = FN(exp)(zero - MAX(zero - z, z)) * SET1(EXP_UNSCALE);
    }
    for (Py_ssize_t k = 0; k < turns; k++) { /* One division serves both 1/(1 + e) and e/(2 + e). */
        const VEC u = one + e[k], v = SET1(2) + e[k], r = one / (u * v);
        large[k] = v * r;
        rest[k] = e[k] * (u * r);
    }
    for (Py_ssize_t k = 0; k < turns; k++)
        rest[k] = FN(log1p_scaled)(rest[k], rest[k] * rest[k]);
    for (Py_ssize_t k = 0; k < turns; k++) {
        const Py_ssize_t i = k * LANES;
        const VEC z = FN(load_upto)(z_ + i, n), gap = MAX(zero - z, z), small = e[k] * large[k];
        VEC a = FN(load_upto)(target + i, n), b = one - a;
        if (other)
            b = FN(load_upto)(other + i, n);
        if (positive)
            a = a * FN(load_upto)(positive + i, n);
        if (weight) {
            const VEC w = FN(load_upto)(weight + i, n);
            a = a * w;
            b = b * w;
        }
        if (grad) {
            const VEC p = SELECT_EQ(gap, z, large[k], small), q = SELECT_EQ(gap, z, small, large[k]);
            FN(store_upto)(grad + i, SET1(scale) * FMSUB(b, p, a * q), n);
        }
        const VEC t = FMA(a + b, rest[k], FN(gap_term)(SELECT_EQ(gap, z, b, a), gap));
        if (loss)
            FN(store_upto)(loss + i, t, n);
        if (CE_F32) { /* Their sums might overflow. */
            ACC_ADD((*acc), FN(first_lanes)(t, n));
        } else { /* Compensation costs, so losses are added four at a time. */
            sum = sum + FN(first_lanes)(t, n);
            if (k % 4 == 3 || k == turns - 1) {
                ACC_ADD((*acc), sum);
                sum = zero;
            }
        }
    }
}

CE_INLINE double FN(sigmoid)(const T *z, const T *target, const T *other, const T *positive, const T *weight,
                             Py_ssize_t n, T scale, T *loss, T *grad)
{
    ACC acc = ACC_ZERO;
    Py_ssize_t i = 0, turns, count;
    for (; i < n; i += count) {
        turns = (n - i) / LANES < SIGMOID_TURNS ? (n - i) / LANES : SIGMOID_TURNS;
        count = turns ? turns * LANES : n - i;
#define FROM_I(p) (p ? p + i : NULL)
        if (turns)
            FN(sigmoid_turns)(z + i, target + i, FROM_I(other), FROM_I(positive), FROM_I(weight), turns, LANES, scale,
                              FROM_I(loss), grad ? grad + i : NULL, &acc);
        else
            FN(sigmoid_turns)(z + i, target + i, FROM_I(other), FROM_I(positive), FROM_I(weight), 1, count, scale,
                              FROM_I(loss), grad ? grad + i : NULL, &acc);
#undef FROM_I
    }
    return ACC_SUM(acc);
}
#undef SIGMOID_TURNS

static double FN(row_sigmoid)(const void *z, const void *target, const void *other, const void *positive,
                              const void *weight, Py_ssize_t n, double scale, void *loss, void *grad)
{
    return grad ? FN(sigmoid)(z, target, other, positive, weight, n, (T)scale, loss, grad)
                : FN(sigmoid)(z, target, other, positive, weight, n, 0, loss, NULL);
}
