# The vector primitives and the threads, as Cython sees them. _simd/primitives.inc says what each primitive computes and
# names the parameters.
from libc.stdint cimport int64_t, uint64_t

# Not `from "_simd/dispatch.h"`: Cython would copy that file next to the generated C, without those it includes.
cdef extern from * nogil:
    """
    #include "_simd/dispatch.h"

    #if defined(__clang__)
    #define CE_COMPILER "clang " __clang_version__
    #elif defined(__GNUC__)
    #define CE_COMPILER "gcc " __VERSION__
    #elif defined(_MSC_VER)
    #define CE_STRING_(x) #x
    #define CE_STRING(x) CE_STRING_(x)
    #define CE_COMPILER "msvc " CE_STRING(_MSC_VER)
    #else
    #define CE_COMPILER "unknown"
    #endif
    """
    const char *CE_COMPILER
    const double CE_GAP_UNIT
    enum: CE_MAX_LANES, CE_ISA_COUNT, CE_ONES, CE_BY_CLASS, CE_BY_ELEMENT, CE_STORED, CE_EXP, CE_DIFFERENCE
    enum: CE_TWO_TERM_ROWS
    ctypedef struct ce_row_sums:
        pass
    ctypedef struct ce_fetched:
        const char *data
        Py_ssize_t row_stride
        Py_ssize_t class_stride
        int contiguous
    ctypedef struct ce_two_term:
        Py_ssize_t rows
        Py_ssize_t pitch
        int along
        ce_fetched next_x
        ce_fetched next_c
        ce_fetched dst
        void *x
        void *c
        const void *not_c
        void *h
        const void *weight
        void *row_max
        void *second
        void *first_max
        void *ratio
        void *total
        void *scale
        void *slope
        ce_row_sums exp
        ce_row_sums a_sum
        ce_row_sums gap
        ce_row_sums h_sum
        ce_row_sums log_sum
        double a_max[]
        double b_max[]
        double factor[]
        double sample[]
        double loss[]
        double grad_max[]
        double below
    ctypedef struct ce_divergence:
        Py_ssize_t rows
        int along
        int of_logits
        double temperature
        const void *x
        const void *t
        const void *e_x
        const void *e_t
        void *grad
        Py_ssize_t x_step
        Py_ssize_t t_step
        Py_ssize_t e_x_step
        Py_ssize_t e_t_step
        Py_ssize_t grad_step
        void *x_shift
        void *t_shift
        void *gap
        void *offset
        void *x_top
        void *t_top
        void *p_factor
        void *q_factor
        void *scale
        double x_max[]
        double x_tail[]
        double t_max[]
        double t_tail[]
        double mass[]
        double mass_lost[]
        double factor[]
        double loss[]
    ctypedef struct ce_primitives:
        double exp_one
        void (*rows_max)(const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, double *) noexcept nogil
        Py_ssize_t (*row_find)(const void *, Py_ssize_t, double) noexcept nogil
        void (*rows_exp_sum)(const void *, Py_ssize_t, void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, int, const double *,
                             double, int, const void *, double *) noexcept nogil
        void (*rows_base)(const void *, Py_ssize_t, const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *,
                          double, double, double *, double *, double *) noexcept nogil
        double (*row_sum)(const void *, Py_ssize_t) noexcept nogil
        void (*rows_grad)(const void *, Py_ssize_t, void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, int, const double *,
                          double, const double *, const double *, const void *, const Py_ssize_t *, const double *,
                          double, int) noexcept nogil
        void (*rows_grad_by_element)(const void *, Py_ssize_t, const void *, Py_ssize_t, void *, Py_ssize_t, Py_ssize_t,
                                     Py_ssize_t, int, const double *, double, const double *, const double *, double,
                                     double, const double *, const double *, double, int) noexcept nogil
        void (*tile_max)(const void *, Py_ssize_t, Py_ssize_t, void *) noexcept nogil
        void (*tile_exp_sum)(const void *, void *, Py_ssize_t, Py_ssize_t, const void *, const void *, double, const void *,
                             double *, double *, double *, const void *, Py_ssize_t, void *, Py_ssize_t) noexcept nogil
        void (*tile_gap_dot)(const void *, const void *, const void *, Py_ssize_t, Py_ssize_t, const void *, double *,
                             void *) noexcept nogil
        void (*tile_sums)(const void *, const void *, Py_ssize_t, Py_ssize_t, const void *, double *, double *,
                          double *) noexcept nogil
        void (*tile_grad)(const void *, void *, Py_ssize_t, Py_ssize_t, int, const void *, double, const void *,
                          const void *, const void *, int, const void *, const void *, const void *, const void *,
                          double) noexcept nogil
        void (*rows_hess)(const void *, Py_ssize_t, void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *,
                          const double *, const double *, const double *) noexcept nogil
        void (*tile_hess)(const void *, void *, Py_ssize_t, Py_ssize_t, const void *, const void *, const void *,
                          const void *) noexcept nogil
        double (*row_spread)(const void *, const void *, Py_ssize_t, double, const void *) noexcept nogil
        void (*tile_pick)(const void *, const void *, Py_ssize_t, Py_ssize_t, void *) noexcept nogil
        void (*tile_spread)(const void *, const void *, Py_ssize_t, Py_ssize_t, const void *, double *) noexcept nogil
        void (*rows_hvp)(const void *, Py_ssize_t, const void *, Py_ssize_t, void *, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                         const double *, const double *, const double *) noexcept nogil
        void (*tile_hvp)(const void *, const void *, void *, Py_ssize_t, Py_ssize_t, const void *, const void *,
                         const void *) noexcept nogil
        void (*two_term_maxima)(ce_two_term *, Py_ssize_t) noexcept nogil
        void (*two_term_sums)(ce_two_term *, Py_ssize_t, int) noexcept nogil
        void (*two_term_total)(ce_two_term *) noexcept nogil
        void (*two_term_odds)(ce_two_term *, Py_ssize_t, int, int) noexcept nogil
        void (*two_term_finish)(ce_two_term *) noexcept nogil
        void (*two_term_grad)(ce_two_term *, Py_ssize_t) noexcept nogil
        void (*softcap)(const void *, Py_ssize_t, double, void *, void *) noexcept nogil
        void (*divergence_begin)(ce_divergence *) noexcept nogil
        void (*divergence)(ce_divergence *, Py_ssize_t) noexcept nogil
        void (*divergence_finish)(ce_divergence *) noexcept nogil
        void (*row_affine)(const void *, const void *, Py_ssize_t, double, double, void *) noexcept nogil
        void (*flush_small)(void *, Py_ssize_t, double) noexcept nogil
        double (*row_sigmoid)(const void *, const void *, const void *, const void *, const void *, Py_ssize_t, double,
                              void *, void *) noexcept nogil
        void (*rows_jacobian)(const void *, Py_ssize_t, const void *, Py_ssize_t, void *, Py_ssize_t, Py_ssize_t,
                              Py_ssize_t, int, double, double) noexcept nogil
        void (*columns_jacobian_sum)(const void *, Py_ssize_t, const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, int,
                                     int, void *, void *) noexcept nogil
        void (*columns_jacobian)(const void *, Py_ssize_t, const void *, Py_ssize_t, void *, Py_ssize_t, Py_ssize_t,
                                 Py_ssize_t, int, const void *, double, double, int) noexcept nogil
        void (*rows_argmax)(const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t *) noexcept nogil
        void (*columns_argmax)(const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t *, void *,
                               void *) noexcept nogil
        void (*rows_entropy)(const void *, Py_ssize_t, void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *, double,
                             int, const void *, double *, double *) noexcept nogil
        void (*rows_entropy_grad)(const void *, Py_ssize_t, const void *, Py_ssize_t, void *, Py_ssize_t, Py_ssize_t,
                                  Py_ssize_t, const double *, double, const double *, const double *, double,
                                  int) noexcept nogil
        Py_ssize_t (*row_rank)(const void *, Py_ssize_t, Py_ssize_t, double) noexcept nogil
        void (*tile_entropy)(const void *, Py_ssize_t, Py_ssize_t, const void *, const void *, double, double *,
                             double *) noexcept nogil
        void (*tile_entropy_grad)(void *, Py_ssize_t, Py_ssize_t, const void *, double, const void *,
                                  const void *) noexcept nogil
        void (*tile_rank)(const void *, Py_ssize_t, Py_ssize_t, const void *, const void *, void *) noexcept nogil
        void (*transpose)(const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, void *, Py_ssize_t) noexcept nogil
        void (*load_runs)(const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, void *, Py_ssize_t) noexcept nogil
        void (*store_runs)(const void *, Py_ssize_t, Py_ssize_t, Py_ssize_t, void *, Py_ssize_t, int) noexcept nogil
        void (*label_lanes)(const int64_t *, Py_ssize_t, int64_t, void *) noexcept nogil
        void (*convert)(int, const void *, Py_ssize_t, void *) noexcept nogil
        void (*to_half)(int, const float *, Py_ssize_t, void *, int) noexcept nogil
        void (*narrow)(const double *, Py_ssize_t, void *) noexcept nogil
        void (*widen)(const void *, Py_ssize_t, double *) noexcept nogil
        void (*widen_state)(const void *, Py_ssize_t, double *, double *, double *, double,
                            const double *) noexcept nogil
        void (*add_compensated)(double *, double *, const double *, Py_ssize_t) noexcept nogil
        void (*losses)(Py_ssize_t, const double *, const double *, const double *, const double *, double, double,
                       double *, double *) noexcept nogil
        void (*coefficients)(Py_ssize_t, const double *, const double *, const double *, const double *, double, double,
                             const double *, const double *, const double *, const double *, double *, double *,
                             double *, double *, const double *, double *) noexcept nogil
        void (*hess_coefficients)(Py_ssize_t, const double *, const double *, const double *, double, double, double *,
                                  double *, double *) noexcept nogil
        void (*hvp_coefficients)(Py_ssize_t, const double *, const double *, const double *, double, double,
                                 const double *, const double *, double *, double *) noexcept nogil
        void (*add_labels)(Py_ssize_t, const double *, const double *, double, double, double, double *, double *,
                           double *, double *, double *) noexcept nogil
        void (*logarithms)(const double *, Py_ssize_t, double, double *) noexcept nogil
        void (*zero_ignored)(const int64_t *, Py_ssize_t, double *) noexcept nogil
        Py_ssize_t (*count_labels)(const int64_t *, Py_ssize_t, int64_t, int64_t, int) noexcept nogil
        Py_ssize_t (*settle_labels)(const int64_t *, Py_ssize_t, int64_t, int64_t, int, int64_t *) noexcept nogil
        uint64_t (*largest_bits)(const void *, Py_ssize_t, Py_ssize_t) noexcept nogil
    float ce_from_f16(int bits) noexcept
    float ce_from_bf16(int bits) noexcept
    ctypedef struct ce_isa:
        const char *name
        int (*runs_here)() noexcept
    const ce_isa ce_isas[]
    const ce_primitives *ce_chosen_f32
    const ce_primitives *ce_chosen_f64
    int ce_choose(int isa) noexcept
    double ce_tail_if_finite(double tail, double row_max) noexcept
    void ce_add_label(double weight, double d, double hot, double uniform, double smoothing_mass, double *mass,
                      double *linear, double *q, double *rest, double *rest_at_max) noexcept

cdef extern from "_threads.h" nogil:
    int ce_openmp_version() noexcept
    int ce_watch_forks() noexcept
    int ce_must_be_serial() noexcept
    void ce_limit_threads(int quota) noexcept
    int ce_automatic_threads() noexcept
    double ce_pause() noexcept
    ctypedef void (*ce_unit)(const void *job, Py_ssize_t unit, int thread) noexcept nogil
    void ce_run_units(ce_unit run, const void *job, Py_ssize_t units, int threads, bint automatic) noexcept
