/* Where the largest number of each row is: the first that equals the maximum or, if there is NaN, the first NaN. MAX
 * skips NaN, so the numbers are also added: the sum is NaN if one of them is. Because inf - inf is NaN too, rows whose
 * sum is NaN are searched. */

/* The first i with NaN in x[i], or -1. */
static CE_NOINLINE Py_ssize_t FN(first_nan)(const void *x, Py_ssize_t stride, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        const T value = *(const T *)ce_at(x, i * stride);
        if (value != value)
            return i;
    }
    return -1;
}

/* Whether a lane of v is NaN. */
CE_INLINE int FN(has_nan)(VEC v) { return EQ_BITS(v, v) != (1u << LANES) - 1u; }

/* ----- Vectors along the classes ----- */

/* Takes the vector v of a row into the largest numbers of its lanes and where these are. */
#define TAKE(v_, at_v, largest, at, sum)                                        \
    do {                                                                        \
        const VEC v = (v_), larger = MAX(v, largest);                           \
        at = SELECT_EQ(larger, largest, at, at_v);                              \
        largest = larger;                                                       \
        sum = sum + v;                                                          \
    } while (0)

/* The first of the largest of n >= LANES numbers. The sum is NaN in some lane if one of them is. */
CE_INLINE Py_ssize_t FN(block_argmax)(const T *x, Py_ssize_t n, T *largest, VEC *sum)
{
    const VEC none = SET1((T)-INFINITY), zero = SET1(0);
    VEC m0 = none, m1 = none, m2 = none, m3 = none, at0 = zero, at1 = zero, at2 = zero, at3 = zero;
    VEC even = zero, odd = zero, iv = zero;
    Py_ssize_t i = 0;
#define WHOLE(k, sum) TAKE(LOAD(x + i + (k) * LANES), iv, m##k, at##k, sum)
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        WHOLE(0, even);
        WHOLE(1, odd);
        WHOLE(2, even);
        WHOLE(3, odd);
        iv = iv + SET1(4 * LANES);
    }
    if (i + LANES <= n)
        WHOLE(0, even);
    if (i + 2 * LANES <= n)
        WHOLE(1, odd);
    if (i + 3 * LANES <= n)
        WHOLE(2, even);
#undef WHOLE
    TAKE(LOAD(x + n - LANES), SET1((T)(n - LANES)), m0, at0, odd); /* overlaps the one before it */
    *sum = even + odd;
    *largest = LARGEST(MAX(MAX(m0, m1), MAX(m2, m3)));
    /* Negative, because the first is wanted. */
    const VEC wanted = SET1(*largest), lanes = LOAD(FN(iota));
#define PLACE(k) SELECT_EQ(m##k, wanted, SET1(-k * LANES) - (at##k + lanes), none)
    return (Py_ssize_t)-LARGEST(MAX(MAX(PLACE(0), PLACE(1)), MAX(PLACE(2), PLACE(3))));
#undef PLACE
}

CE_INLINE Py_ssize_t FN(short_row_argmax)(const T *x, Py_ssize_t n)
{
    const VEC v = LOAD_PART(x, n, (T)-INFINITY);
    if (FN(has_nan)(v))
        return FN(first_nan)(x, sizeof(T), n);
    return CE_FIRST_BIT(EQ_BITS(v, SET1(LARGEST(v))));
}

CE_INLINE Py_ssize_t FN(row_argmax)(const T *x, Py_ssize_t n)
{
    enum { BLOCK = 1 << 22 }; /* float32 counts so many */
    Py_ssize_t at = 0, i = 0, count, nan;
    T largest = 0;
    for (; i < n; i += count) {
        T block_largest;
        VEC sum;
        count = n - i < 2 * BLOCK ? n - i : BLOCK; /* so the last block has at least LANES numbers, too */
        const Py_ssize_t block_at = FN(block_argmax)(x + i, count, &block_largest, &sum);
        if (FN(has_nan)(sum) && (nan = FN(first_nan)(x + i, sizeof(T), count)) >= 0)
            return i + nan;
        if (i == 0 || block_largest > largest) {
            largest = block_largest;
            at = i + block_at;
        }
    }
    return at;
}

static void FN(rows_argmax)(const void *x_, Py_ssize_t x_row_stride, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t *at)
{
    for (Py_ssize_t r = 0; r < rows; r++) {
        const T *x = ce_at(x_, r * x_row_stride);
        at[r] = n < LANES ? FN(short_row_argmax)(x, n) : FN(row_argmax)(x, n);
    }
}

/* ----- Vectors across the rows ----- */

/* Takes up to eight classes, of which j is the first, of m rows into their largest number, its class and their sum. */
CE_INLINE void FN(take_classes)(const T *x, Py_ssize_t x_class_stride, Py_ssize_t classes, Py_ssize_t j, Py_ssize_t m,
                                T *largest, T *at, T *sum)
{
    VEC largest_r = LOAD(largest), at_r = LOAD(at), sum_r = LOAD(sum), jv = SET1((T)j);
#define CLASS(k)                                                                                            \
    do {                                                                                                    \
        TAKE(FN(load_upto)((const T *)ce_at(x, (k) * x_class_stride), m), jv, largest_r, at_r, sum_r);      \
        jv = jv + SET1(1);                                                                                  \
    } while (0)
    if (classes >= 8) {
        CLASS(0); CLASS(1); CLASS(2); CLASS(3);
        CLASS(4); CLASS(5); CLASS(6); CLASS(7);
    } else {
        for (Py_ssize_t k = 0; k < classes; k++)
            CLASS(k);
    }
#undef CLASS
#undef TAKE
    STORE(largest, largest_r);
    STORE(at, at_r);
    STORE(sum, sum_r);
}

static void FN(columns_argmax)(const void *x, Py_ssize_t x_class_stride, Py_ssize_t first, Py_ssize_t classes,
                               Py_ssize_t n, Py_ssize_t *at, void *largest_, void *scratch)
{
    const Py_ssize_t width = (n + LANES - 1) / LANES * LANES;
    T *so_far = largest_, *largest = scratch, *class_of = largest + width, *sum = class_of + width;
    for (Py_ssize_t r = 0; r < width; r++) {
        largest[r] = (T)-INFINITY;
        class_of[r] = sum[r] = 0;
    }
    /* A few classes of all rows, then the next: memory is read in long runs. */
    for (Py_ssize_t j = 0; j < classes; j += 8) {
        const T *row = ce_at(x, j * x_class_stride);
        Py_ssize_t r = 0;
        for (; r + LANES <= n; r += LANES)
            FN(take_classes)(row + r, x_class_stride, classes - j, j, LANES, largest + r, class_of + r, sum + r);
        if (r < n)
            FN(take_classes)(row + r, x_class_stride, classes - j, j, n - r, largest + r, class_of + r, sum + r);
    }
    for (Py_ssize_t r = 0; r < n; r++) {
        if (sum[r] != sum[r]) {
            const Py_ssize_t nan = FN(first_nan)((const T *)x + r, x_class_stride, classes);
            if (nan >= 0) {
                largest[r] = (T)NAN;
                class_of[r] = (T)nan;
            }
        }
        if (first == 0 || largest[r] > so_far[r] || (largest[r] != largest[r] && so_far[r] == so_far[r])) {
            so_far[r] = largest[r];
            at[r] = first + (Py_ssize_t)class_of[r];
        }
    }
}
