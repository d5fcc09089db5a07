/* Gaussian splatting on the CPU: projection, depth sort, rasterisation, and the gradient of all of it.
 *
 * The picture is small and stays in the cache, so Gaussians are walked in depth order and each updates the pixels it
 * covers: no tiles, no atomics. Pixels lie in strips of LANES columns; one row of a strip is one vector. The quadratic
 * form is kept as a sum of squares,
 *
 *     d^2 = dy^2 / c_yy + A r^2,   r = dx - k dy,   k = c_xy / c_yy,   A = 1 / (c_xx - k c_xy),
 *
 * which never cancels, and alpha is 2 to the power log2(opacity) - d^2 log2(e) / 2. The backward pass walks in reverse
 * and recovers the transmittance by division; what lies behind a Gaussian enters its gradient through one number a pixel.
 *
 * The image formation is documented in splats_torch.py. Views are independent calls, so a caller may run them in threads
 * and gets the same bits. "Planes" are arrays [component][stride(n)], one column per Gaussian.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define BLOCK 8          /* rows that are skipped together once they are opaque */
#define GROUP 16         /* Gaussians that are transposed together */

#define NEAR 0.01f
#define LOW_PASS 0.3f
#define CLAMP 0.3f
#define MAX_ALPHA 0.999f
#define MIN_TRANSMITTANCE 1e-4f
#define LOG2_MIN_ALPHA -7.9943534368588578f /* log2(1 / 255) */
#define LOG2_MAX_ALPHA -0.0014434168696687f /* log2(0.999) */
#define HALF_LOG2_E 0.72134752044448170f
#define TWO_LN_2 1.3862943611198906f

typedef float lanes __attribute__((vector_size(LANES * 4)));
typedef int32_t mask __attribute__((vector_size(LANES * 4)));

enum { X, Y, Z, XX, XY, XZ, YY, YZ, ZZ, LOG2_OPACITY, REACH, SHAPE };             /* planes of a shape */
enum { G_X, G_Y, G_Z, G_XX, G_XY, G_XZ, G_YY, G_YZ, G_ZZ, G_LOG, G_R, G_G, G_B, GRADIENT }; /* planes of a gradient */
enum { FLAT_X, FLAT_Y, FLAT_K, FLAT_A, FLAT_H, FLAT_Z, FLAT_LOG, FLAT_R, FLAT_G, FLAT_B, FLAT = 16 };

typedef struct { /* one visible Gaussian of a view, in depth order; 64 bytes */
    float x, y, k, a, h, log2_opacity, rgb[3], z; /* x, y from the principal point; a, h times log2(e) / 2 */
    int16_t first_strip, last_strip, first_row, last_row; /* half open */
    int32_t id, touched;
    float pad[2];
} record;

typedef struct { lanes t, c[5]; mask last; } cell;                    /* forward: transmittance; sums of rgb, z and 1 */
typedef struct { lanes t, behind, g[4]; mask last; } back_cell;       /* backward: upstream gradients of rgb and z */
typedef struct { lanes t; mask last; } saved_cell;

int splats_lanes(void) { return LANES; }
const char *splats_source(void) { return SOURCE; } /* the hash of this text, so that a stale library is not used */

static int stride(int n) { return (n + GROUP - 1) / GROUP * GROUP; }
static int strips(int width) { return (width + LANES - 1) / LANES; }
static int blocks(int height) { return (height + BLOCK - 1) / BLOCK; }

int64_t splats_shape_size(int n) { return (int64_t)SHAPE * stride(n); }
int64_t splats_gradient_size(int n) { return (int64_t)GRADIENT * stride(n); }
/* Floats that a view's backward pass needs from its forward pass; the first 16 hold the count. */
int64_t splats_state_size(int n, int width, int height) {
    return 16 + (int64_t)16 * n + (int64_t)strips(width) * height * (sizeof(saved_cell) / 4) + 16;
}
static record *state_records(float *state) { return (record *)(state + 16); }
static saved_cell *state_cells(float *state, int n) { return (saved_cell *)(state + 16 + (int64_t)16 * n); }

static inline int any(mask m) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)m, (__m512i)m) != 0;
#elif defined(__AVX__)
    return _mm256_movemask_ps((__m256)m) != 0;
#elif defined(__x86_64__)
    return _mm_movemask_ps((__m128)m) != 0;
#else
    int32_t joined = 0;
    for (int l = 0; l < LANES; l++) joined |= m[l];
    return joined != 0;
#endif
}

static inline float sum(lanes v) {
#if LANES == 16
    v += __builtin_shuffle(v, (mask){8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
    v += __builtin_shuffle(v, (mask){4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
    v += __builtin_shuffle(v, (mask){2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
    return v[0] + v[1];
#else
    float total = 0;
    for (int l = 0; l < LANES; l++) total += v[l];
    return total;
#endif
}

/* 2^e for e in (-8, 0], relative error 1e-7 (minimax polynomial on the fraction). Other e give some number. */
static inline lanes power_of_two(lanes e) {
    mask whole = __builtin_convertvector(e, mask); /* towards zero, so the fraction lies in (-1, 0] */
    lanes f = e - __builtin_convertvector(whole, lanes);
    lanes p = 9.387883367e-04f * f + 9.188611731e-03f;
    p = p * f + 5.527972258e-02f;
    p = p * f + 2.401721892e-01f;
    p = p * f + 6.931422526e-01f;
    p = p * f + 9.999999251e-01f;
    return (lanes)((mask)p + (whole << 23));
}

static inline lanes where(mask m, lanes v) { return (lanes)(m & (mask)v); }
static inline lanes either(mask m, lanes v, float otherwise) {
    return (lanes)((m & (mask)v) | (~m & (mask)(otherwise + (lanes){0})));
}

/* Zeroed memory for whole vectors. */
static void *vectors(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (p) memset(p, 0, bytes);
    return p;
}

/* ------------------------------------------------------------------ shapes: what all views share */

/* A Gaussian with any number that is not finite, or too faint for the cut, gets reach -1 and is never drawn. */
void splats_shape(int n, const float *means, const float *scales, const float *quats, const float *opacities,
                  const float *colours, float *shape) {
    const int m = stride(n);
    for (int i = 0; i < n; i++) {
        const float *p = means + 3 * i, *s = scales + 3 * i, *q = quats + 4 * i, *c = colours + 3 * i;
        float norm = 1.0f / sqrtf(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
        float w = q[0] * norm, x = q[1] * norm, y = q[2] * norm, z = q[3] * norm;
        float r[3][3] = {{1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)},
                         {2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)},
                         {2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)}};
        float v[3] = {s[0] * s[0], s[1] * s[1], s[2] * s[2]};
        float cov[6];
        for (int a = 0, out = 0; a < 3; a++)
            for (int b = a; b < 3; b++)
                cov[out++] = r[a][0] * r[b][0] * v[0] + r[a][1] * r[b][1] * v[1] + r[a][2] * r[b][2] * v[2];
        float all = p[0] + p[1] + p[2] + cov[0] + cov[3] + cov[5] + c[0] + c[1] + c[2];
        float log2_opacity = log2f(opacities[i]);
        int drawn = log2_opacity >= LOG2_MIN_ALPHA && log2_opacity < 1e30f && fabsf(all) < 1e30f;
        for (int a = 0; a < 3; a++) shape[a * m + i] = p[a];
        for (int a = 0; a < 6; a++) shape[(XX + a) * m + i] = cov[a];
        shape[LOG2_OPACITY * m + i] = log2_opacity;
        shape[REACH * m + i] = drawn ? TWO_LN_2 * (log2_opacity - LOG2_MIN_ALPHA) : -1.0f;
    }
}

/* Sums the views' gradients, in their order, and carries them to scales, quaternions and opacities. */
void splats_gather(int n, int views, const float *scales, const float *quats, const float *opacities,
                   const float *gradients, float *g_means, float *g_scales, float *g_quats, float *g_opacities,
                   float *g_colours) {
    const int m = stride(n);
    float g[GRADIENT][GROUP];
    for (int first = 0; first < n; first += GROUP) {
        for (int a = 0; a < GRADIENT; a++) {
            memcpy(g[a], gradients + a * m + first, sizeof g[a]);
            for (int v = 1; v < views; v++) {
                const float *more = gradients + ((int64_t)v * GRADIENT + a) * m + first;
                for (int l = 0; l < GROUP; l++) g[a][l] += more[l];
            }
        }
        for (int l = 0; l < GROUP && first + l < n; l++) {
            const int i = first + l;
            const float *s = scales + 3 * i, *q = quats + 4 * i;
            for (int a = 0; a < 3; a++) {
                g_means[3 * i + a] = g[a][l];
                g_colours[3 * i + a] = g[G_R + a][l];
            }
            float any_gradient = 0;
            for (int a = G_XX; a <= G_LOG; a++) any_gradient += fabsf(g[a][l]);
            if (any_gradient == 0) { /* not drawn in any view, so its numbers may be anything */
                memset(g_scales + 3 * i, 0, 12), memset(g_quats + 4 * i, 0, 16), g_opacities[i] = 0;
                continue;
            }
            g_opacities[i] = g[G_LOG][l] / opacities[i];
            float norm = 1.0f / sqrtf(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]);
            float w = q[0] * norm, x = q[1] * norm, y = q[2] * norm, z = q[3] * norm;
            float r[3][3] = {{1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)},
                             {2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)},
                             {2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)}};
            float c[3][3] = {{g[G_XX][l], g[G_XY][l], g[G_XZ][l]},
                             {g[G_XY][l], g[G_YY][l], g[G_YZ][l]},
                             {g[G_XZ][l], g[G_YZ][l], g[G_ZZ][l]}};
            float gr[3][3]; /* cov = (r s)(r s)^T, so d (r s) = 2 c (r s) */
            for (int b = 0; b < 3; b++) {
                float gs = 0;
                for (int a = 0; a < 3; a++) {
                    float cr = 2 * s[b] * (c[a][0] * r[0][b] + c[a][1] * r[1][b] + c[a][2] * r[2][b]);
                    gs += cr * r[a][b];
                    gr[a][b] = cr * s[b];
                }
                g_scales[3 * i + b] = gs;
            }
            float u[4] = {2 * (x * (gr[2][1] - gr[1][2]) + y * (gr[0][2] - gr[2][0]) + z * (gr[1][0] - gr[0][1])),
                          2 * (y * (gr[0][1] + gr[1][0]) + z * (gr[0][2] + gr[2][0]) + w * (gr[2][1] - gr[1][2]) -
                               2 * x * (gr[1][1] + gr[2][2])),
                          2 * (x * (gr[0][1] + gr[1][0]) + z * (gr[1][2] + gr[2][1]) + w * (gr[0][2] - gr[2][0]) -
                               2 * y * (gr[0][0] + gr[2][2])),
                          2 * (x * (gr[0][2] + gr[2][0]) + y * (gr[1][2] + gr[2][1]) + w * (gr[1][0] - gr[0][1]) -
                               2 * z * (gr[0][0] + gr[1][1]))};
            float along = w * u[0] + x * u[1] + y * u[2] + z * u[3]; /* the length of q has no effect */
            float unit[4] = {w, x, y, z};
            for (int a = 0; a < 4; a++) g_quats[4 * i + a] = norm * (u[a] - along * unit[a]);
        }
    }
}

/* ------------------------------------------------------------------ one view: projection and its gradient */

typedef struct {
    float r[3][3], t[3], fx, fy, cx, cy; /* world to camera; pixels */
    float low_u, high_u, low_v, high_v;  /* bounds of the Jacobian's ray */
    double depth[4];                     /* the third row of (r, t) */
} view;

/* camera: rotation (9, row-major) and translation (3) of world to camera, fx, fy, cx, cy. */
static view make_view(const double *camera, int width, int height) {
    view c;
    for (int a = 0; a < 9; a++) c.r[a / 3][a % 3] = (float)camera[a];
    for (int a = 0; a < 3; a++) c.t[a] = (float)camera[9 + a], c.depth[a] = camera[6 + a];
    c.fx = camera[12], c.fy = camera[13], c.cx = camera[14], c.cy = camera[15], c.depth[3] = camera[11];
    float u = CLAMP * width / (2 * c.fx), v = CLAMP * height / (2 * c.fy);
    c.low_u = -c.cx / c.fx - u, c.high_u = (width - c.cx) / c.fx + u;
    c.low_v = -c.cy / c.fy - v, c.high_v = (height - c.cy) / c.fy + v;
    return c;
}

static inline float clamp(float x, float low, float high) { return fminf(fmaxf(x, low), high); }

/* Planes of a projection: position from the principal point, shear, A, 1 / c_yy, z, half width and height, radius. */
enum { P_X, P_Y, P_K, P_A, P_H, P_Z, P_WIDE, P_TALL, P_RADIUS, PROJECTION };

static void project(int n, const float *restrict shape, view c, float *restrict out, double *restrict depth) {
    const int m = stride(n);
    for (int i = 0; i < n; i++)
        depth[i] = c.depth[0] * shape[X * m + i] + c.depth[1] * shape[Y * m + i] + c.depth[2] * shape[Z * m + i] + c.depth[3];
    for (int i = 0; i < n; i++) {
        float px = shape[X * m + i], py = shape[Y * m + i], pz = shape[Z * m + i];
        float x = c.r[0][0] * px + c.r[0][1] * py + c.r[0][2] * pz + c.t[0];
        float y = c.r[1][0] * px + c.r[1][1] * py + c.r[1][2] * pz + c.t[1];
        float z = (float)depth[i], iz = 1.0f / z, u = x * iz, v = y * iz;
        float bu = clamp(u, c.low_u, c.high_u), bv = clamp(v, c.low_v, c.high_v), su = c.fx * iz, sv = c.fy * iz;
        float a0 = su * (c.r[0][0] - bu * c.r[2][0]), b0 = sv * (c.r[1][0] - bv * c.r[2][0]);
        float a1 = su * (c.r[0][1] - bu * c.r[2][1]), b1 = sv * (c.r[1][1] - bv * c.r[2][1]);
        float a2 = su * (c.r[0][2] - bu * c.r[2][2]), b2 = sv * (c.r[1][2] - bv * c.r[2][2]);
        float c0 = shape[XX * m + i], c1 = shape[XY * m + i], c2 = shape[XZ * m + i];
        float c3 = shape[YY * m + i], c4 = shape[YZ * m + i], c5 = shape[ZZ * m + i];
        float va0 = c0 * a0 + c1 * a1 + c2 * a2, va1 = c1 * a0 + c3 * a1 + c4 * a2, va2 = c2 * a0 + c4 * a1 + c5 * a2;
        float vb0 = c0 * b0 + c1 * b1 + c2 * b2, vb1 = c1 * b0 + c3 * b1 + c4 * b2, vb2 = c2 * b0 + c4 * b1 + c5 * b2;
        float xx = a0 * va0 + a1 * va1 + a2 * va2 + LOW_PASS, xy = a0 * vb0 + a1 * vb1 + a2 * vb2;
        float yy = b0 * vb0 + b1 * vb1 + b2 * vb2 + LOW_PASS;
        float h = 1.0f / yy, k = xy * h, reach = shape[REACH * m + i];
        float middle = 0.5f * (xx + yy), half = 0.5f * (xx - yy);
        out[P_X * m + i] = c.fx * u, out[P_Y * m + i] = c.fy * v;
        out[P_K * m + i] = k, out[P_A * m + i] = 1.0f / (xx - k * xy), out[P_H * m + i] = h;
        out[P_Z * m + i] = reach >= 0 && z > NEAR ? z : -1.0f;
        out[P_WIDE * m + i] = sqrtf(reach * xx) + 1e-3f, out[P_TALL * m + i] = sqrtf(reach * yy) + 1e-3f;
        out[P_RADIUS * m + i] = 3.0f * sqrtf(middle + sqrtf(half * half + xy * xy));
    }
}

/* Gradients of a view's flat Gaussians [n][FLAT] carried to means and world covariances, as planes. */
static void project_backward(int n, const float *restrict shape, view c, const float *restrict flat,
                             float *restrict out) {
    const int m = stride(n);
    float f[FLAT_B + 1][GROUP];
    for (int first = 0; first < n; first += GROUP) {
        int count = n - first < GROUP ? n - first : GROUP;
        memset(f, 0, sizeof f);
        for (int l = 0; l < count; l++)
            for (int a = 0; a <= FLAT_B; a++) f[a][l] = flat[(int64_t)(first + l) * FLAT + a];
        for (int l = 0; l < GROUP; l++) {
            const int i = first + l;
            float px = shape[X * m + i], py = shape[Y * m + i], pz = shape[Z * m + i];
            float x = c.r[0][0] * px + c.r[0][1] * py + c.r[0][2] * pz + c.t[0];
            float y = c.r[1][0] * px + c.r[1][1] * py + c.r[1][2] * pz + c.t[1];
            float z = c.r[2][0] * px + c.r[2][1] * py + c.r[2][2] * pz + c.t[2];
            float iz = 1.0f / z, u = x * iz, v = y * iz;
            float bu = clamp(u, c.low_u, c.high_u), bv = clamp(v, c.low_v, c.high_v), su = c.fx * iz, sv = c.fy * iz;
            float a0 = su * (c.r[0][0] - bu * c.r[2][0]), b0 = sv * (c.r[1][0] - bv * c.r[2][0]);
            float a1 = su * (c.r[0][1] - bu * c.r[2][1]), b1 = sv * (c.r[1][1] - bv * c.r[2][1]);
            float a2 = su * (c.r[0][2] - bu * c.r[2][2]), b2 = sv * (c.r[1][2] - bv * c.r[2][2]);
            float c0 = shape[XX * m + i], c1 = shape[XY * m + i], c2 = shape[XZ * m + i];
            float c3 = shape[YY * m + i], c4 = shape[YZ * m + i], c5 = shape[ZZ * m + i];
            float va0 = c0 * a0 + c1 * a1 + c2 * a2, va1 = c1 * a0 + c3 * a1 + c4 * a2;
            float va2 = c2 * a0 + c4 * a1 + c5 * a2;
            float vb0 = c0 * b0 + c1 * b1 + c2 * b2, vb1 = c1 * b0 + c3 * b1 + c4 * b2;
            float vb2 = c2 * b0 + c4 * b1 + c5 * b2;
            float xx = a0 * va0 + a1 * va1 + a2 * va2 + LOW_PASS, xy = a0 * vb0 + a1 * vb1 + a2 * vb2;
            float yy = b0 * vb0 + b1 * vb1 + b2 * vb2 + LOW_PASS;
            float h = 1.0f / yy, k = xy * h, A = 1.0f / (xx - k * xy);
            /* k = xy / yy, A = 1 / (xx - xy^2 / yy), h = 1 / yy */
            float ga = A * A * f[FLAT_A][l], gk = h * f[FLAT_K][l];
            float gxx = -ga, gxy = 2 * k * ga + gk, gyy = -k * k * ga - k * gk - h * h * f[FLAT_H][l];
            /* xx = a C a, xy = a C b, yy = b C b */
            float ga0 = 2 * gxx * va0 + gxy * vb0, gb0 = 2 * gyy * vb0 + gxy * va0;
            float ga1 = 2 * gxx * va1 + gxy * vb1, gb1 = 2 * gyy * vb1 + gxy * va1;
            float ga2 = 2 * gxx * va2 + gxy * vb2, gb2 = 2 * gyy * vb2 + gxy * va2;
            float g0 = gxx * a0 * a0 + gxy * a0 * b0 + gyy * b0 * b0;
            float g3 = gxx * a1 * a1 + gxy * a1 * b1 + gyy * b1 * b1;
            float g5 = gxx * a2 * a2 + gxy * a2 * b2 + gyy * b2 * b2;
            float g1 = gxx * a0 * a1 + 0.5f * gxy * (a0 * b1 + a1 * b0) + gyy * b0 * b1;
            float g2 = gxx * a0 * a2 + 0.5f * gxy * (a0 * b2 + a2 * b0) + gyy * b0 * b2;
            float g4 = gxx * a1 * a2 + 0.5f * gxy * (a1 * b2 + a2 * b1) + gyy * b1 * b2;
            /* a = (fx / z) (R0 - u R2); the ray u moves with the Gaussian until it is clamped */
            float gu = -su * (ga0 * c.r[2][0] + ga1 * c.r[2][1] + ga2 * c.r[2][2]);
            float gv = -sv * (gb0 * c.r[2][0] + gb1 * c.r[2][1] + gb2 * c.r[2][2]);
            gu = c.fx * f[FLAT_X][l] + (u == bu ? gu : 0), gv = c.fy * f[FLAT_Y][l] + (v == bv ? gv : 0);
            float stretch = ga0 * a0 + ga1 * a1 + ga2 * a2 + gb0 * b0 + gb1 * b1 + gb2 * b2;
            float gx = gu * iz, gy = gv * iz, gz = f[FLAT_Z][l] - iz * (stretch + u * gu + v * gv);
            int drawn = f[FLAT_LOG][l] != 0 || f[FLAT_R][l] != 0 || f[FLAT_G][l] != 0 || f[FLAT_B][l] != 0 ||
                        f[FLAT_Z][l] != 0;
            float g[GRADIENT] = {c.r[0][0] * gx + c.r[1][0] * gy + c.r[2][0] * gz,
                                 c.r[0][1] * gx + c.r[1][1] * gy + c.r[2][1] * gz,
                                 c.r[0][2] * gx + c.r[1][2] * gy + c.r[2][2] * gz,
                                 g0, g1, g2, g3, g4, g5,
                                 f[FLAT_LOG][l], f[FLAT_R][l], f[FLAT_G][l], f[FLAT_B][l]};
            for (int a = 0; a < GRADIENT; a++) out[a * m + i] = drawn ? g[a] : 0.0f;
        }
    }
}

/* ------------------------------------------------------------------ one view: sort */

/* Visible Gaussians as records in order of depth; equal depths keep the order of their rows. A radix sort by the float
 * of the depth is followed by insertion among equal floats, of which a large scene has many. keys: room for 2 n. Returns
 * how many there are. */
static int sort_records(int n, const float *shape, const float *projection, const double *depth, const float *colours, view c, int width,
                        int height, uint64_t *keys, float *radii, record *out) {
    const int m = stride(n);
    uint64_t *other = keys + n;
    int count = 0;
    for (int i = 0; i < n; i++) {
        float x = projection[P_X * m + i] + c.cx, y = projection[P_Y * m + i] + c.cy, z = projection[P_Z * m + i];
        float wide = projection[P_WIDE * m + i], tall = projection[P_TALL * m + i];
        /* Written so that a number that is not finite fails. */
        int seen = z > 0 && x + wide > 0.5f && x - wide < width - 0.5f && y + tall > 0.5f && y - tall < height - 0.5f &&
                   projection[P_A * m + i] > 0 && projection[P_A * m + i] < 1e30f && projection[P_RADIUS * m + i] < 1e30f;
        radii[i] = seen ? projection[P_RADIUS * m + i] : 0.0f;
        if (!seen) continue;
        uint32_t bits;
        memcpy(&bits, &z, 4);
        keys[count++] = (uint64_t)bits << 32 | (uint32_t)i;
    }
    for (int shift = 32; shift < 64; shift += 11) {
        uint32_t start[2049] = {0};
        for (int i = 0; i < count; i++) start[(keys[i] >> shift & 2047) + 1]++;
        for (int b = 0; b < 2048; b++) start[b + 1] += start[b];
        for (int i = 0; i < count; i++) other[start[keys[i] >> shift & 2047]++] = keys[i];
        uint64_t *swap = keys;
        keys = other, other = swap;
    }
    for (int j = 1; j < count; j++)
        for (int k = j; k > 0 && keys[k - 1] >> 32 == keys[k] >> 32 && depth[(uint32_t)keys[k - 1]] > depth[(uint32_t)keys[k]]; k--) {
            uint64_t swap = keys[k];
            keys[k] = keys[k - 1], keys[k - 1] = swap;
        }
    for (int j = 0; j < count; j++) {
        int i = (int)(uint32_t)keys[j];
        float x = projection[P_X * m + i], y = projection[P_Y * m + i];
        float wide = projection[P_WIDE * m + i], tall = projection[P_TALL * m + i];
        record *r = out + j;
        r->x = x, r->y = y, r->k = projection[P_K * m + i];
        r->a = HALF_LOG2_E * projection[P_A * m + i], r->h = HALF_LOG2_E * projection[P_H * m + i];
        r->log2_opacity = shape[LOG2_OPACITY * m + i];
        memcpy(r->rgb, colours + 3 * i, 12);
        r->z = projection[P_Z * m + i];
        float left = fmaxf(ceilf(x + c.cx - wide - 0.5f), 0), right = fminf(floorf(x + c.cx + wide + 0.5f), width);
        float top = fmaxf(ceilf(y + c.cy - tall - 0.5f), 0), bottom = fminf(floorf(y + c.cy + tall + 0.5f), height);
        r->first_strip = (int)left / LANES, r->last_strip = ((int)right + LANES - 1) / LANES;
        r->first_row = (int)top, r->last_row = (int)bottom;
        r->id = i, r->touched = 0;
    }
    return count;
}

/* ------------------------------------------------------------------ one view: forward */

static inline lanes columns(int strip, float centre) {
    lanes x;
    for (int l = 0; l < LANES; l++) x[l] = strip * LANES + l + 0.5f - centre;
    return x;
}

static int composite(record *g, int index, cell *cells, uint64_t *dead, int height, float cx, float cy) {
    const lanes red = g->rgb[0] + (lanes){0}, green = g->rgb[1] + (lanes){0}, blue = g->rgb[2] + (lanes){0};
    const float x0 = g->x, y0 = g->y, k = g->k, a = g->a, h = g->h, top = g->log2_opacity, z = g->z;
    int touched = 0;
    for (int s = g->first_strip; s < g->last_strip; s++) {
        const lanes dx = columns(s, cx) - x0;
        for (int b = g->first_row / BLOCK; b * BLOCK < g->last_row; b++) {
            uint64_t *opaque = dead + s * blocks(height) + b;
            if (*opaque == UINT64_MAX) continue;
            int first = g->first_row > b * BLOCK ? g->first_row : b * BLOCK;
            int last = g->last_row < (b + 1) * BLOCK ? g->last_row : (b + 1) * BLOCK;
            for (int row = first; row < last; row++) {
                cell *p = cells + s * height + row;
                const float dy = row + 0.5f - cy - y0;
                const lanes r = dx - k * dy, e = (top - h * dy * dy) - a * r * r;
                const mask live = (mask)(p->t > MIN_TRANSMITTANCE), seen = (mask)(e >= LOG2_MIN_ALPHA) & live;
                if (!any(seen)) {
                    if (!any(live)) ((uint8_t *)opaque)[row % BLOCK] = 0xff;
                    continue;
                }
                touched = 1;
                const lanes power = power_of_two(e);
                const lanes alpha = where(seen, either((mask)(power < MAX_ALPHA), power, MAX_ALPHA));
                const lanes weight = alpha * p->t;
                p->c[0] += weight * red, p->c[1] += weight * green, p->c[2] += weight * blue, p->c[3] += weight * z;
                p->c[4] += weight, p->t -= weight;
                p->last = (p->last & ~seen) | (seen & index);
            }
        }
    }
    return touched;
}

/* Draws one view. colour [H][W][3] over black, alpha and depth sums [H][W], means2d [n][2] in [-1, 1], radii [n].
 * Returns 0, or 1 where there is no memory. */
int splats_forward(int n, const float *shape, const float *colours, const double *camera, int width, int height,
                    float *colour, float *alpha, float *depth, float *means2d, float *radii, float *state) {
    const int m = stride(n), S = strips(width), rows = S * height;
    const view c = make_view(camera, width, height);
    float *projection = malloc((size_t)PROJECTION * m * sizeof *projection);
    double *z = malloc((size_t)n * sizeof *z);
    uint64_t *keys = malloc(2 * (size_t)n * sizeof *keys), *dead = calloc((size_t)S * blocks(height), sizeof *dead);
    cell *cells = vectors((size_t)rows * sizeof *cells);
    if (!projection || !z || !keys || !dead || !cells) {
        free(projection), free(z), free(keys), free(dead), free(cells);
        return 1;
    }
    project(n, shape, c, projection, z);
    for (int i = 0; i < n; i++) {
        int front = projection[P_Z * m + i] > 0;
        means2d[2 * i] = front ? 2 * (projection[P_X * m + i] + c.cx) / width - 1 : 0;
        means2d[2 * i + 1] = front ? 2 * (projection[P_Y * m + i] + c.cy) / height - 1 : 0;
    }
    record *records = state_records(state);
    int count = sort_records(n, shape, projection, z, colours, c, width, height, keys, radii, records);
    free(projection), free(z), free(keys);
    memcpy(state, &count, sizeof count);

    for (int s = 0; s < S; s++) {
        const lanes inside = where((mask)(columns(s, 0) < (float)width), 1.0f + (lanes){0});
        for (int y = 0; y < height; y++) cells[s * height + y].t = inside; /* columns beyond the picture are opaque */
        if (height % BLOCK) /* so are the rows that fill up the last block */
            memset((uint8_t *)(dead + (s + 1) * blocks(height)) - (BLOCK - height % BLOCK), 0xff, BLOCK - height % BLOCK);
    }
    for (int j = 0; j < count; j++)
        records[j].touched = composite(records + j, j + 1, cells, dead, height, c.cx, c.cy);
    free(dead);

    saved_cell *saved = state_cells(state, n);
    for (int s = 0; s < S; s++)
        for (int y = 0; y < height; y++) {
            const cell *p = cells + s * height + y;
            saved[s * height + y] = (saved_cell){p->t, p->last};
            for (int l = 0; l < LANES && s * LANES + l < width; l++) {
                int pixel = y * width + s * LANES + l;
                for (int a = 0; a < 3; a++) colour[3 * pixel + a] = p->c[a][l];
                depth[pixel] = p->c[3][l];
                alpha[pixel] = p->t[l] > 0.5f ? p->c[4][l] : 1 - p->t[l]; /* whichever of the two is the exacter */
            }
        }
    free(cells);
    return 0;
}

/* ------------------------------------------------------------------ one view: backward */

/* The gradient of one flat Gaussian; with_depth tells whether depth has an upstream gradient. */
static inline __attribute__((always_inline)) void decompose(const record *g, int index, back_cell *cells,
                                                            const int32_t *row_last, const int32_t *block_last,
                                                            int height, float cx, float cy, int with_depth,
                                                            float *flat) {
    const float x0 = g->x, y0 = g->y, k = g->k, a = g->a, h = g->h, top = g->log2_opacity, z = g->z;
    const lanes red = g->rgb[0] + (lanes){0}, green = g->rgb[1] + (lanes){0}, blue = g->rgb[2] + (lanes){0};
    lanes w0 = {0}, w_y = {0}, w_yy = {0}, w_r = {0}, w_ry = {0}, w_rr = {0};
    lanes g_red = {0}, g_green = {0}, g_blue = {0}, g_z = {0};
    for (int s = g->first_strip; s < g->last_strip; s++) {
        const lanes dx = columns(s, cx) - x0;
        for (int b = g->first_row / BLOCK; b * BLOCK < g->last_row; b++) {
            if (block_last[s * blocks(height) + b] < index) continue;
            int first = g->first_row > b * BLOCK ? g->first_row : b * BLOCK;
            int last = g->last_row < (b + 1) * BLOCK ? g->last_row : (b + 1) * BLOCK;
            for (int row = first; row < last; row++) {
                if (row_last[s * height + row] < index) continue;
                back_cell *p = cells + s * height + row;
                const float dy = row + 0.5f - cy - y0;
                const lanes r = dx - k * dy, e = (top - h * dy * dy) - a * r * r;
                const mask seen = (mask)(e >= LOG2_MIN_ALPHA) & (p->last >= index);
                if (!any(seen)) continue;
                const lanes power = power_of_two(e);
                const mask free = (mask)(power < MAX_ALPHA); /* the clamp stops the gradient */
                const lanes alpha = where(seen, either(free, power, MAX_ALPHA));
                const lanes over = 1.0f / (1.0f - alpha), t = p->t * over, weight = alpha * t;
                lanes value = red * p->g[0] + green * p->g[1] + blue * p->g[2];
                if (with_depth) value += z * p->g[3];
                const lanes gain = alpha * (t * value - p->behind * over), w = where(free, gain);
                p->t = t;
                p->behind += weight * value;
                g_red += weight * p->g[0], g_green += weight * p->g[1], g_blue += weight * p->g[2];
                if (with_depth) g_z += weight * p->g[3];
                const lanes wr = w * r;
                w0 += w, w_y += w * dy, w_yy += w * (dy * dy), w_r += wr, w_ry += wr * dy, w_rr += wr * r;
            }
        }
    }
    const float A = a / HALF_LOG2_E, H = h / HALF_LOG2_E, along = A * sum(w_r);
    flat[FLAT_X] = along, flat[FLAT_Y] = H * sum(w_y) - k * along;
    flat[FLAT_K] = A * sum(w_ry), flat[FLAT_A] = -0.5f * sum(w_rr), flat[FLAT_H] = -0.5f * sum(w_yy);
    flat[FLAT_Z] = with_depth ? sum(g_z) : 0, flat[FLAT_LOG] = sum(w0);
    flat[FLAT_R] = sum(g_red), flat[FLAT_G] = sum(g_green), flat[FLAT_B] = sum(g_blue);
}

/* Upstream gradients [H][W]... (g_depth may be NULL) to gradient planes and to g_means2d [n][2].
 * state is not changed. Returns 0, or 1 where there is no memory. */
int splats_backward(int n, const float *shape, const double *camera, int width, int height, const float *g_colour,
                     const float *g_alpha, const float *g_depth, float *state, float *gradient, float *g_means2d) {
    const int S = strips(width), rows = S * height, B = blocks(height);
    const view c = make_view(camera, width, height);
    const record *records = state_records(state);
    const saved_cell *saved = state_cells(state, n);
    int count;
    memcpy(&count, state, sizeof count);

    back_cell *cells = vectors((size_t)rows * sizeof *cells);
    int32_t *row_last = calloc((size_t)rows + (size_t)S * B, sizeof *row_last), *block_last = row_last + rows;
    float *flat = calloc((size_t)n * FLAT, sizeof *flat);
    if (!cells || !row_last || !flat) {
        free(cells), free(row_last), free(flat);
        return 1;
    }
    for (int s = 0; s < S; s++)
        for (int y = 0; y < height; y++) {
            back_cell *p = cells + s * height + y;
            p->t = saved[s * height + y].t, p->last = saved[s * height + y].last;
            int32_t latest = 0;
            for (int l = 0; l < LANES && s * LANES + l < width; l++) {
                int pixel = y * width + s * LANES + l;
                for (int a = 0; a < 3; a++) p->g[a][l] = g_colour[3 * pixel + a];
                if (g_depth) p->g[3][l] = g_depth[pixel];
                p->behind[l] = -g_alpha[pixel] * p->t[l]; /* alpha = 1 - t, so light from behind has this value */
                latest = p->last[l] > latest ? p->last[l] : latest;
            }
            row_last[s * height + y] = latest;
            if (block_last[s * B + y / BLOCK] < latest) block_last[s * B + y / BLOCK] = latest;
        }
    for (int j = count; j-- > 0;) {
        if (!records[j].touched) continue;
        float *target = flat + (int64_t)records[j].id * FLAT;
        if (g_depth)
            decompose(records + j, j + 1, cells, row_last, block_last, height, c.cx, c.cy, 1, target);
        else
            decompose(records + j, j + 1, cells, row_last, block_last, height, c.cx, c.cy, 0, target);
    }
    for (int i = 0; i < n; i++) {
        g_means2d[2 * i] = flat[(int64_t)i * FLAT + FLAT_X] * width / 2;
        g_means2d[2 * i + 1] = flat[(int64_t)i * FLAT + FLAT_Y] * height / 2;
    }
    project_backward(n, shape, c, flat, gradient);
    free(cells), free(row_last), free(flat);
    return 0;
}
