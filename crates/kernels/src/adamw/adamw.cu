// One AdamW step over segments of a piece, with the host's bits: 26 bytes a number (18 with bf16 moments,
// 14.125 with 8-bit ones).
#include "update.cuh"

// The factors of a step, as the host computed them, and the formula of the module's head.
struct AdamW {
    float grad_scale, one_minus_beta1, one_minus_beta2, root_correction2, eps, keep, minus_rate;

    static const int N = 2;
    static __device__ constexpr bool is_signed(int a) { return a == 0; }

    __device__ __forceinline__ void update(float keep, float grad, float& p, float* m) const {
        float g = __fmul_rn(grad, grad_scale);
        m[0] = __fmaf_rn(one_minus_beta1, __fsub_rn(g, m[0]), m[0]);
        m[1] = __fmaf_rn(one_minus_beta2, __fmaf_rn(g, g, -m[1]), m[1]);
        float d = __fadd_rn(__fdiv_rn(__fsqrt_rn(m[1]), root_correction2), eps);
        p = __fmaf_rn(minus_rate, __fdiv_rn(m[0], d), __fmul_rn(p, keep));
    }
};

#define FACTORS                                                                                    \
    float grad_scale, float one_minus_beta1, float one_minus_beta2, float root_correction2,        \
        float eps, float keep, float minus_rate
#define VALUES                                                                                     \
    grad_scale, one_minus_beta1, one_minus_beta2, root_correction2, eps, keep, minus_rate
#define MOMENTS(T) T *m, T *v
#define ARRAYS m, v
#define SCALES float *m_scale, float *v_scale
#define SCALE_ARRAYS m_scale, v_scale
STEPS(AdamW)
