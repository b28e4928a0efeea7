/* Primitives on one float64 number, or one label, for each row: plain loops that compilers vectorise. */

static void FN(add_compensated)(double *restrict total, double *restrict lost, const double *restrict term,
                                Py_ssize_t n)
{
    for (Py_ssize_t r = 0; r < n; r++)
        CE_ADD_COMPENSATED(double, total[r], lost[r], term[r]);
}

/* log(u + rest) for u >= 2^-1022 and a rest that is at most half of u's last place, with an error below 1.5 ulp; and
 * *share = 1 / u.
 *
 * u is 2^k * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)). Then log(u + rest) = k*ln(2) + log(1 + f) + rest/u, where
 * log(1 + f) is computed as in FreeBSD's e_log.c. */
CE_INLINE double FN(log)(double u, double rest, double *share)
{
    const uint64_t sqrt_half = 0x3fe6a09e667f3bcdu, two52 = 0x4330000000000000u, bias = (uint64_t)1024 << 52;
    uint64_t bits, k, mantissa;
    double kd, f;
    memcpy(&bits, &u, sizeof bits);
    k = (bits - sqrt_half + bias) >> 52; /* 1024 more than k, so that it is not negative */
    mantissa = bits + bias - (k << 52);
    k |= two52; /* the bits of the float64 number 2^52 + k */
    memcpy(&f, &mantissa, sizeof f);
    memcpy(&kd, &k, sizeof kd);
    kd -= 0x1p52 + 1024;
    f -= 1.0;
    /* One division serves all quotients: r = 1/(d*u), so about = d*r is 1/u and u*r is 1/d. */
    const double d = 2.0 + f, r = 1.0 / (d * u), about = d * r;
    const double c = rest * about;
    const double s = f * (u * r), z = s * s, w = z * z, half = 0.5 * f * f;
    const double even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
    const double odd = z * (6.666666666666735130e-01 +
                            w * (2.857142874366239149e-01 +
                                 w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
    *share = about + about * (1.0 - u * about);
    return kd * 6.93147180369123816490e-01 -
           ((half - (s * (half + (even + odd)) + (kd * 1.90821492927058770002e-10 + c))) - f);
}

/* log(1 + t) for t >= 0, with an error below 1.5 ulp; and *share = 1 / (1 + t). */
CE_INLINE double FN(log1p)(double t, double *share)
{
    const double u = 1.0 + t;
    return FN(log)(u, t - (u - 1.0), share);
}

CE_INLINE double FN(loss)(double log_total, double row_max, double mass, double linear, double inverse, double z_loss)
{
    const double lse = row_max * inverse + log_total;
    return mass * log_total + linear + (z_loss ? z_loss * lse * lse : 0);
}

static void FN(losses)(Py_ssize_t n, const double *restrict row_max, const double *restrict tail,
                       const double *restrict mass, const double *restrict linear, double temperature, double z_loss,
                       double *restrict log_total, double *restrict loss)
{
    const double inverse = 1 / temperature;
    for (Py_ssize_t r = 0; r < n; r++) {
        double share;
        log_total[r] = FN(log1p)(tail[r], &share);
        loss[r] = FN(loss)(log_total[r], row_max[r], mass[r], linear[r], inverse, z_loss);
    }
}

CE_INLINE void FN(coefficients_)(Py_ssize_t n, const double *restrict row_max, const double *restrict tail,
                                 const double *restrict mass, const double *restrict linear, double temperature,
                                 double z_loss, const double *restrict q, const double *restrict rest,
                                 const double *restrict e, const double *restrict scale, double *restrict log_total, double *restrict loss,
                                 double *restrict a, double *restrict exact_grad,
                                 const double *restrict rest_at_max, double *restrict grad_at_max)
{
    const double inverse = 1 / temperature;
    for (Py_ssize_t r = 0; r < n; r++) {
        double share;
        const double log_r = FN(log1p)(tail[r], &share); /* without loss the compiler leaves the logarithm out */
        const double slope = z_loss ? 2 * z_loss * (row_max[r] * inverse + log_r) : 0; /* d(z_loss * lse^2) / d(lse) */
        /* (mass + slope)*p - q with p = 1 - tail*share */
        const double lost = mass[r] * (tail[r] * share), gained = slope * share;
        const double grad_if_p_near_1 = (rest[r] - lost) + gained;
        const double grad_otherwise = (mass[r] + slope) * (e[r] * share) - q[r];
        if (loss) {
            log_total[r] = log_r;
            loss[r] = FN(loss)(log_r, row_max[r], mass[r], linear[r], inverse, z_loss);
        }
        a[r] = scale[r] * ((mass[r] + slope) * share);
        /* The class is a maximum, and the only one: two or more maxima have p <= 1/2 each, and tail >= 1. */
        exact_grad[r] = scale[r] * (((e[r] == 1.0) & (tail[r] < 1.0)) ? grad_if_p_near_1 : grad_otherwise);
        if (grad_at_max)
            grad_at_max[r] = scale[r] * ((rest_at_max[r] - lost) + gained);
    }
}

static void FN(coefficients)(Py_ssize_t n, const double *row_max, const double *tail, const double *mass,
                             const double *linear, double temperature, double z_loss, const double *q,
                             const double *rest, const double *e, const double *scale, double *log_total, double *loss,
                             double *a, double *exact_grad, const double *rest_at_max, double *grad_at_max)
{
#define COEFFICIENTS(z_loss, log_total, loss, rest_at_max, grad_at_max)                                            \
    FN(coefficients_)(n, row_max, tail, mass, linear, temperature, z_loss, q, rest, e, scale, log_total, loss, a,  \
                      exact_grad, rest_at_max, grad_at_max)
    if (loss && grad_at_max)
        COEFFICIENTS(z_loss, log_total, loss, rest_at_max, grad_at_max);
    else if (loss)
        COEFFICIENTS(z_loss, log_total, loss, NULL, NULL);
    else if (grad_at_max)
        COEFFICIENTS(0, NULL, NULL, rest_at_max, grad_at_max);
    else
        COEFFICIENTS(0, NULL, NULL, NULL, NULL);
#undef COEFFICIENTS
}

static void FN(hess_coefficients)(Py_ssize_t n, const double *restrict tail, const double *restrict scale,
                                  const double *restrict gradient_a, double temperature, double z_loss,
                                  double *restrict a, double *restrict b, double *restrict hess_at_max)
{
    const double inverse = 1 / temperature;
    for (Py_ssize_t r = 0; r < n; r++) {
        const double share = 1 / (1 + tail[r]), of_lse = z_loss ? 2 * z_loss * scale[r] * share : 0;
        a[r] = gradient_a[r] * inverse;
        b[r] = (gradient_a[r] - of_lse) * (share * inverse);
        hess_at_max[r] = (gradient_a[r] * tail[r] + of_lse) * (share * inverse);
    }
}

static void FN(hvp_coefficients)(Py_ssize_t n, const double *restrict tail, const double *restrict scale,
                                 const double *restrict gradient_a, double temperature, double z_loss,
                                 const double *restrict v_at_max, const double *restrict spread, double *restrict a,
                                 double *restrict b)
{
    const double inverse = 1 / temperature;
    for (Py_ssize_t r = 0; r < n; r++) {
        const double share = 1 / (1 + tail[r]), of_lse = z_loss ? 2 * z_loss * scale[r] * share : 0;
        const double mean = spread[r] * share; /* of v - v_at_max */
        a[r] = gradient_a[r] * inverse;
        b[r] = (z_loss ? of_lse * inverse * (v_at_max[r] + mean) : 0) - a[r] * mean;
    }
}

CE_INLINE void FN(add_labels_)(Py_ssize_t n, const double *restrict weight, const double *restrict d, double hot,
                               double uniform, double smoothing_mass, double *restrict mass, double *restrict linear,
                               double *restrict q, double *restrict rest, double *restrict rest_at_max)
{
    for (Py_ssize_t r = 0; r < n; r++)
        ce_add_label(weight[r], d[r], hot, uniform, smoothing_mass, mass + r, linear + r, q + r, rest + r,
                     rest_at_max ? rest_at_max + r : NULL);
}

static void FN(add_labels)(Py_ssize_t n, const double *weight, const double *d, double hot, double uniform,
                           double smoothing_mass, double *mass, double *linear, double *q, double *rest,
                           double *rest_at_max)
{
    if (rest_at_max)
        FN(add_labels_)(n, weight, d, hot, uniform, smoothing_mass, mass, linear, q, rest, rest_at_max);
    else
        FN(add_labels_)(n, weight, d, hot, uniform, smoothing_mass, mass, linear, q, rest, NULL);
}

static void FN(logarithms)(const double *restrict c, Py_ssize_t n, double factor, double *restrict logs)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        const int subnormal = c[i] < DBL_MIN;
        double unused, t = FN(log)(subnormal ? c[i] * 0x1p54 : c[i], 0, &unused);
        t = subnormal ? t - 54 * 6.93147180559945309417e-01 : t;
        t = c[i] > 0 ? t : c[i] == 0 ? -INFINITY : NAN;
        logs[i] = factor * t;
    }
}

static void FN(zero_ignored)(const int64_t *restrict labels, Py_ssize_t n, double *restrict values)
{
    for (Py_ssize_t r = 0; r < n; r++)
        values[r] = labels[r] < 0 ? 0 : values[r];
}

static Py_ssize_t FN(count_labels)(const int64_t *labels, Py_ssize_t n, int64_t classes, int64_t ignored,
                                   int has_ignored)
{
    int64_t count = 0, wrong = 0;
    for (Py_ssize_t r = 0; r < n; r++) {
        const int64_t label = labels[r], counts = !has_ignored | (label != ignored);
        count += counts;
        wrong |= counts & ((label < 0) | (label >= classes));
    }
    return wrong ? -1 : (Py_ssize_t)count;
}

static Py_ssize_t FN(settle_labels)(const int64_t *labels, Py_ssize_t n, int64_t classes, int64_t ignored,
                                    int has_ignored, int64_t *settled)
{
    int64_t count = 0;
    for (Py_ssize_t r = 0; r < n; r++) {
        const int64_t label = labels[r], counts = !has_ignored | (label != ignored);
        const int64_t is_class = counts & ((uint64_t)label < (uint64_t)classes);
        settled[r] = label | (is_class - 1); /* all bits set: -1 */
        count += is_class;
    }
    return count;
}

/* The bits are copied, since they may be those of floats. */
#define LARGEST_BITS(TYPE)                                             \
    static TYPE FN(largest_##TYPE)(const char *c, Py_ssize_t n)        \
    {                                                                  \
        TYPE largest = 0;                                              \
        for (Py_ssize_t i = 0; i < n; i++) {                           \
            TYPE bits;                                                 \
            memcpy(&bits, c + i * (Py_ssize_t)sizeof bits, sizeof bits); \
            largest = bits > largest ? bits : largest;                 \
        }                                                              \
        return largest;                                                \
    }
LARGEST_BITS(uint8_t)
LARGEST_BITS(uint16_t)
LARGEST_BITS(uint32_t)
LARGEST_BITS(uint64_t)
#undef LARGEST_BITS

static uint64_t FN(largest_bits)(const void *c, Py_ssize_t n, Py_ssize_t size)
{
    return size == 1   ? FN(largest_uint8_t)(c, n)
           : size == 2 ? FN(largest_uint16_t)(c, n)
           : size == 4 ? FN(largest_uint32_t)(c, n)
                       : FN(largest_uint64_t)(c, n);
}
