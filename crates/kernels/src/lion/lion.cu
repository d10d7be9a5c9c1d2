// One Lion step over segments of a piece, with the host's bits: 18 bytes a number (14 with a bf16 moment,
// 12.0625 with an 8-bit one).
#include "update.cuh"

// The factors of a step, as the host computed them, and the formula of the module's head.
struct Lion {
    float grad_scale, one_minus_beta1, one_minus_beta2, keep, minus_rate;

    static const int N = 1;
    static __device__ constexpr bool is_signed(int) { return true; }

    __device__ __forceinline__ void update(float keep, float grad, float& p, float* m) const {
        float g = __fmul_rn(grad, grad_scale);
        float a = __fsub_rn(g, m[0]);
        float c = __fmaf_rn(one_minus_beta1, a, m[0]);
        float u = c > 0.0f ? 1.0f : c < 0.0f ? -1.0f : c;
        m[0] = __fmaf_rn(one_minus_beta2, a, m[0]);
        p = __fmaf_rn(minus_rate, u, __fmul_rn(p, keep));
    }
};

#define FACTORS                                                                                    \
    float grad_scale, float one_minus_beta1, float one_minus_beta2, float keep, float minus_rate
#define VALUES grad_scale, one_minus_beta1, one_minus_beta2, keep, minus_rate
#define MOMENTS(T) T *m
#define ARRAYS m
#define SCALES float *m_scale
#define SCALE_ARRAYS m_scale
STEPS(Lion)
