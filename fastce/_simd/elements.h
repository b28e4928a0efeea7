/* Primitives that treat every element alike. */

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

CE_INLINE double FN(sigmoid)(const T *z_, const T *a_, const T *b_, Py_ssize_t n, T scale, T *loss_, T *grad)
{
    const VEC zero = SET1(0), one = SET1(1);
    ACC acc = ACC_ZERO;
    for (Py_ssize_t i = 0; i < n; i += LANES) {
        const VEC z = FN(load_upto)(z_ + i, n - i), a = FN(load_upto)(a_ + i, n - i);
        VEC b = one - a;
        if (b_)
            b = FN(load_upto)(b_ + i, n - i);
        const VEC up = MAX(z, zero), down = MAX(zero - z, zero);
        /* exp(-|z|). MAX skips NaN, so NaN is taken from z itself. */
        const VEC e = FN(exp)(SELECT_EQ(z, z, zero - (up + down), z)) * SET1(EXP_UNSCALE);
        const VEC large = one / (one + e), small = e * large;
        if (grad) {
            const VEC p = SELECT_EQ(up, z, large, small), other = SELECT_EQ(up, z, small, large);
            FN(store_upto)(grad + i, SET1(scale) * (b * p - a * other), n - i);
        }
        const VEC loss = (a + b) * FN(log1p_unit)(e) + (FN(gap_term)(b, up) + FN(gap_term)(a, down));
        if (loss_)
            FN(store_upto)(loss_ + i, loss, n - i);
        ACC_ADD(acc, FN(first_lanes)(loss, n - i));
    }
    return ACC_SUM(acc);
}

static double FN(row_sigmoid)(const void *z, const void *a, const void *b, Py_ssize_t n, double scale, void *loss,
                              void *grad)
{
    return grad ? FN(sigmoid)(z, a, b, n, (T)scale, loss, grad) : FN(sigmoid)(z, a, b, n, 0, loss, NULL);
}
