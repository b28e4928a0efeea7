# The vector primitives and the threads, as Cython sees them. _simd/primitives.inc says what each primitive computes.
from libc.stdint cimport int64_t


# Not `from "_simd/dispatch.h"`: Cython would copy that file to the folder of the generated C, without those it includes.
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
    enum: CE_MAX_LANES, CE_ISA_COUNT, CE_ONES, CE_BY_CLASS, CE_BY_ELEMENT, CE_STORED, CE_EXP, CE_DIFFERENCE
    ctypedef struct ce_primitives:
        double exp_one
        void (*rows_max)(const void *x, Py_ssize_t x_row_stride, Py_ssize_t rows, Py_ssize_t n,
                         double *row_max) noexcept nogil
        Py_ssize_t (*row_find)(const void *x, Py_ssize_t n, double value) noexcept nogil
        void (*rows_exp_sum)(const void *x, Py_ssize_t x_row_stride, void *e, Py_ssize_t e_row_stride, Py_ssize_t rows,
                             Py_ssize_t n, int form, const double *shift, int excluded, const void *next,
                             double *sum) noexcept nogil
        double (*row_gap_dot)(const void *x, const void *base, Py_ssize_t n, double shift) noexcept nogil
        double (*row_sum)(const void *x, Py_ssize_t n) noexcept nogil
        double (*row_dot)(const void *x, const void *y, Py_ssize_t n) noexcept nogil
        void (*rows_grad)(const void *src, Py_ssize_t src_row_stride, void *grad, Py_ssize_t grad_row_stride,
                          Py_ssize_t rows, Py_ssize_t n, int form, const double *shift, const double *a, const double *b,
                          const void *base, const Py_ssize_t *exact_class, const double *exact_grad,
                          int stream) noexcept nogil
        void (*tile_max)(const void *x, Py_ssize_t classes, Py_ssize_t width, void *row_max) noexcept nogil
        void (*tile_exp_sum)(const void *x, void *e, Py_ssize_t classes, Py_ssize_t width, const void *row_max,
                             const void *row_max_before, const void *label, double *sum, double *d_label,
                             double *e_label, const void *next, Py_ssize_t next_class_stride, void *dst,
                             Py_ssize_t dst_class_stride) noexcept nogil
        void (*tile_gap_dot)(const void *x, const void *base, int base_kind, Py_ssize_t classes, Py_ssize_t width,
                             const void *row_max, double *sum) noexcept nogil
        void (*tile_sum)(const void *base, Py_ssize_t classes, Py_ssize_t width, const void *x, const void *row_max,
                         double *sum) noexcept nogil
        void (*tile_grad)(const void *src, void *grad, Py_ssize_t classes, Py_ssize_t width, int form,
                          const void *row_max, const void *a, const void *b, const void *base, int base_kind,
                          const void *exact_class, const void *exact_grad) noexcept nogil
        void (*row_affine)(void *q, const void *weight, Py_ssize_t n, double slope, double offset) noexcept nogil
        void (*row_scale)(const void *y, const void *upstream, void *grad, Py_ssize_t n, double shift) noexcept nogil
        double (*row_sigmoid)(const void *z, const void *a, const void *b, Py_ssize_t n, double scale, void *loss,
                              void *grad) noexcept nogil
        void (*transpose)(const void *src, Py_ssize_t src_stride, Py_ssize_t rows, Py_ssize_t columns, void *dst,
                          Py_ssize_t dst_stride) noexcept nogil
        void (*copy_runs)(const void *src, Py_ssize_t src_stride, Py_ssize_t runs, Py_ssize_t n, void *dst,
                          Py_ssize_t dst_stride) noexcept nogil
        void (*label_lanes)(const int64_t *labels, Py_ssize_t n, int64_t first, void *lanes) noexcept nogil
        void (*narrow)(const double *src, Py_ssize_t n, void *dst) noexcept nogil
        void (*widen)(const void *src, Py_ssize_t n, double *dst) noexcept nogil
        void (*widen_state)(const void *src, Py_ssize_t n, double *row_max, double *tail, double *linear, double hot,
                            const double *d_label) noexcept nogil
        void (*add_compensated)(double *total, double *lost, const double *term, Py_ssize_t n) noexcept nogil
        void (*losses)(Py_ssize_t n, const double *row_max, const double *tail, const double *mass, const double *linear,
                       double z_loss, double *log_total, double *loss) noexcept nogil
        void (*coefficients)(Py_ssize_t n, const double *row_max, const double *tail, const double *mass,
                             const double *linear, double z_loss, const double *q, const double *rest, const double *e,
                             const double *scale, double *log_total, double *loss, double *a,
                             double *exact_grad) noexcept nogil
        Py_ssize_t (*count_labels)(const int64_t *labels, Py_ssize_t n, int64_t classes, int64_t ignored,
                                   int has_ignored) noexcept nogil
        Py_ssize_t (*settle_labels)(const int64_t *labels, Py_ssize_t n, int64_t classes, int64_t ignored,
                                    int has_ignored, int64_t *settled) noexcept nogil
    ctypedef struct ce_isa:
        const char *name
        int (*runs_here)() noexcept
    const ce_isa ce_isas[]
    const ce_primitives *ce_chosen_f32
    const ce_primitives *ce_chosen_f64
    int ce_choose(int isa) noexcept
    double ce_tail_if_finite(double tail, double row_max) noexcept

cdef extern from "_threads.h" nogil:
    int ce_openmp_version() noexcept
    int ce_watch_forks() noexcept
    int ce_must_be_serial() noexcept
    void ce_limit_threads(int quota) noexcept
    int ce_automatic_threads() noexcept
