/* The nearest triangle at each pixel centre, without gradient: float64 inside, so that depths order as they should.
 *
 * The picture is that of zbuffer_torch.py to the bit, because both make the same IEEE operations in the same order. So
 * nothing here may be fused or reassociated, which also keeps cracks from opening between two triangles: the plane of
 * a shared edge is -1 times that of the neighbour, exactly.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#if defined(__clang__)
#pragma clang fp contract(off) reassociate(off) reciprocal(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off", "no-associative-math", "no-reciprocal-math")
#endif

#define NEAR 0.01

typedef struct { double x, y, z; } vec;

static inline vec vertex(const float *at) { return (vec){at[0], at[1], at[2]}; }
static inline vec cross(vec a, vec b) {
    return (vec){a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
static inline double dot(vec a, vec b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
static inline double min3(double a, double b, double c) { return fmin(fmin(a, b), c); }
static inline double max3(double a, double b, double c) { return fmax(fmax(a, b), c); }
static inline double clamp(double a, double high) { return fmin(fmax(a, 0), high); }

/* The pixels, half open, whose centres lie between the least and the greatest of three projected coordinates. */
static inline void span(double a, double b, double c, int size, int *first, int *end) {
    *first = (int)clamp(ceil(min3(a, b, c) - 0.5), size);
    *end = (int)clamp(floor(max3(a, b, c) - 0.5) + 1, size);
}

static void triangle(vec a, vec b, vec c, const double *lens, int width, int height, const double *u, const double *v,
                     double *depth, int64_t *ids, int64_t id) {
    vec pa = cross(b, c), pb = cross(c, a), pc = cross(a, b); /* planes through the eye and each side */
    double volume = dot(a, pa);
    int x0 = 0, x1 = width, y0 = 0, y1 = height;
    if (!(fabs(volume) > 0 && fabs(volume) <= DBL_MAX)) return;      /* flat to the eye, or not finite */
    if (!(a.z > NEAR || b.z > NEAR || c.z > NEAR)) return;
    if (a.z > NEAR && b.z > NEAR && c.z > NEAR) { /* a projected box bounds only what is in front */
        span(a.x / a.z * lens[0] + lens[2], b.x / b.z * lens[0] + lens[2], c.x / c.z * lens[0] + lens[2], width, &x0, &x1);
        span(a.y / a.z * lens[1] + lens[3], b.y / b.z * lens[1] + lens[3], c.y / c.z * lens[1] + lens[3], height, &y0, &y1);
    }
    for (int y = y0; y < y1; y++) {
        for (int x = x0; x < x1; x++) {
            vec ray = {u[x], v[y], 1};
            double wa = dot(pa, ray), wb = dot(pb, ray), wc = dot(pc, ray), total = wa + wb + wc;
            double sign = total > 0 ? 1 : -1, z = volume / total;
            if (wa * sign >= 0 && wb * sign >= 0 && wc * sign >= 0 && z > NEAR &&
                z < depth[(int64_t)y * width + x]) { /* of two at one depth the first stays */
                depth[(int64_t)y * width + x] = z;
                ids[(int64_t)y * width + x] = id;
            }
        }
    }
}

/* local [views][vertices][3] in the cameras' frames; faces [n][3]; lens [views][4]: fx, fy, cx, cy; u [views][width] and
 * v [views][height]: the rays (u, v, 1) through the pixels' centres. depth [height][width] is room to work in. Writes
 * ids [views][height][width], -1 where there is no triangle. */
void zbuffer_draw(int views, int64_t vertices, int64_t n, int width, int height, const float *local,
                  const int64_t *faces, const double *lens, const double *u, const double *v, double *depth,
                  int64_t *ids) {
    int64_t pixels = (int64_t)width * height;
    for (int view = 0; view < views; view++) {
        const float *at = local + 3 * vertices * view;
        for (int64_t p = 0; p < pixels; p++) depth[p] = INFINITY, ids[pixels * view + p] = -1;
        for (int64_t f = 0; f < n; f++)
            triangle(vertex(at + 3 * faces[3 * f]), vertex(at + 3 * faces[3 * f + 1]), vertex(at + 3 * faces[3 * f + 2]),
                     lens + 4 * view, width, height, u + (int64_t)width * view, v + (int64_t)height * view, depth,
                     ids + pixels * view, f);
    }
}
