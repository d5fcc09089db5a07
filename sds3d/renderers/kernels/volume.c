/* Marching through a field on a grid on the CPU: samples, interpolation, compositing, and the gradient of all of it.
 *
 * The four raw numbers of a grid point (x, r, g, b) are one vector, so a sample is eight loads and a handful of vector
 * operations, and one vector exponential activates all four. A ray is cut to the box of all occupied cells; within it
 * each sample asks its own cell. The backward pass follows each ray again, which costs less than to write down and read
 * back what the forward pass saw, and then walks it in reverse: what lies behind a sample enters its gradient through
 * one number.
 *
 * The image formation is documented in volume_torch.py. Views are independent calls with gradients of their own, which
 * are added in the order of the views, so the bits do not depend on the threads of a caller.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define DENSITY_SCALE 25.0f
#define SOFT 1e-12f
#define SUMS 9
#define MOST 4200 /* samples of a ray, more than the renderer allows along the diagonal */

typedef float four __attribute__((vector_size(16)));
typedef int32_t four_int __attribute__((vector_size(16)));

typedef struct { /* what all rays of a view share */
    int points;  /* a side */
    float half;  /* grid steps in a world unit */
    const float *grid;
    const uint8_t *occupied;
    const int32_t *box; /* first and last occupied cell, half open, for each axis */
    const float *origin;
    float step, stop;
} scene;

typedef struct { /* one sample in an occupied cell */
    four active;   /* sigmoid of x, r, g, b */
    float t, depth, alpha, before;
    float slope[3], inverse; /* gradient of x per world unit, and one over its length */
    float share[3];
    int32_t corner; /* index of the cell's lowest point */
} sample;

static inline four load(const float *p) {
    four v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* e^x for x in [-80, 0], relative error 1e-6; smaller x count as -80. */
static inline four exponential(four x) {
    four low = -80.0f + (four){0};
    four e = 1.4426950408889634f * (four)(((four_int)x & (x > low)) | ((four_int)low & ~(x > low)));
    four_int whole = __builtin_convertvector(e, four_int); /* towards zero, so the fraction lies in (-1, 0] */
    four f = e - __builtin_convertvector(whole, four);
    four p = 9.387883367e-04f * f + 9.188611731e-03f;
    p = p * f + 5.527972258e-02f;
    p = p * f + 2.401721892e-01f;
    p = p * f + 6.931422526e-01f;
    p = p * f + 9.999999251e-01f;
    return (four)((four_int)p + (whole << 23));
}

/* log(1 + e) for e in [0, 1], relative error 1e-7: twice the inverse hyperbolic tangent of e / (2 + e). */
static inline float log_one_plus(float e) {
    float s = e / (2 + e), q = s * s;
    float p = q * (1.0f / 13) + 1.0f / 11;
    p = p * q + 1.0f / 9;
    p = p * q + 1.0f / 7;
    p = p * q + 1.0f / 5;
    p = p * q + 1.0f / 3;
    return 2 * s * (p * q + 1);
}

/* 1 - e^-d for d >= 0, relative error 1e-6: by its series where the difference would lose digits. */
static inline float opacity(float d) {
    if (d > 0.5f) return 1 - exponential(-d + (four){0})[0];
    float p = 1.0f / 720 - d * (1.0f / 5040);
    p = 1.0f / 120 - d * p;
    p = 1.0f / 24 - d * p;
    p = 1.0f / 6 - d * p;
    p = 0.5f - d * p;
    return d * (1 - d * p);
}

/* Raw numbers and slope at a place of the grid, given in steps from the cell's lowest point; then what they stand for. */
static inline void look(const scene *s, sample *out) {
    const int64_t row = 4 * s->points, plane = row * s->points;
    const float *p = s->grid + 4 * (int64_t)out->corner;
    const float x = out->share[0], y = out->share[1], z = out->share[2];
    four c00 = load(p), c01 = load(p + row), c10 = load(p + plane), c11 = load(p + plane + row);
    four d00 = load(p + 4) - c00, d01 = load(p + row + 4) - c01;
    four d10 = load(p + plane + 4) - c10, d11 = load(p + plane + row + 4) - c11;
    c00 += z * d00, c01 += z * d01, c10 += z * d10, c11 += z * d11;
    four e0 = c01 - c00, e1 = c11 - c10, f0 = c00 + y * e0, f1 = c10 + y * e1, g = f1 - f0, raw = f0 + x * g;
    float z0 = d00[0] + y * (d01[0] - d00[0]), z1 = d10[0] + y * (d11[0] - d10[0]);
    out->slope[0] = s->half * g[0];
    out->slope[1] = s->half * (e0[0] + x * (e1[0] - e0[0]));
    out->slope[2] = s->half * (z0 + x * (z1 - z0));
    float square = out->slope[0] * out->slope[0] + out->slope[1] * out->slope[1] + out->slope[2] * out->slope[2];
    out->inverse = 1.0f / sqrtf(square + SOFT);
    four_int negative = raw < 0;
    four e = exponential((four)((four_int)raw ^ (~negative & INT32_MIN))); /* of -|raw| */
    four inverse = 1.0f / (1.0f + e);
    out->active = (four)(((four_int)(e * inverse) & negative) | ((four_int)inverse & ~negative));
    out->depth = s->step * DENSITY_SCALE * (fmaxf(raw[0], 0) + log_one_plus(e[0]));
    out->alpha = opacity(out->depth);
}

/* The samples of a ray that count, front to back; returns how many. unit: its direction, of length 1. */
static int follow(const scene *s, const float *unit, float offset, sample *out) {
    float base[3], rate[3], start = 0, end = 1e9f;
    for (int a = 0; a < 3; a++) {
        base[a] = s->half * (s->origin[a] + 1), rate[a] = s->half * unit[a];
        float low = s->box[2 * a] - 1e-3f - base[a], high = s->box[2 * a + 1] + 1e-3f - base[a];
        if (fabsf(rate[a]) < 1e-9f) {
            if (low > 0 || high < 0) return 0;
            continue;
        }
        float one = low / rate[a], other = high / rate[a];
        start = fmaxf(start, fminf(one, other)), end = fminf(end, fmaxf(one, other));
    }
    if (!(start <= end)) return 0;
    const int cells = s->points - 1, first = (int)fmaxf(ceilf(start / s->step - offset), 0);
    const int last = (int)fminf(floorf(end / s->step - offset), (float)first + MOST - 1);
    const float limit = (float)cells;
    float before = 1;
    int n = 0;
    for (int k = first; k <= last; k++) {
        float t = ((float)k + offset) * s->step;
        float x = base[0] + t * rate[0], y = base[1] + t * rate[1], z = base[2] + t * rate[2];
        if (!(x >= 0 && y >= 0 && z >= 0 && x <= limit && y <= limit && z <= limit)) continue;
        int i = (int)x, j = (int)y, l = (int)z;
        i = i < cells ? i : cells - 1, j = j < cells ? j : cells - 1, l = l < cells ? l : cells - 1;
        if (!s->occupied[((int64_t)i * cells + j) * cells + l]) continue;
        sample *now = out + n++;
        now->share[0] = x - i, now->share[1] = y - j, now->share[2] = z - l;
        now->corner = (i * s->points + j) * s->points + l, now->t = t, now->before = before;
        look(s, now);
        before *= 1 - now->alpha;
        if (before <= s->stop) break;
    }
    return n;
}

/* Cosine between a sample's normal and the ray. */
static inline float cosine(const sample *p, const float *unit) {
    return -p->inverse * (p->slope[0] * unit[0] + p->slope[1] * unit[1] + p->slope[2] * unit[2]);
}

static inline float normalised(const float *direction, float *unit) {
    float length = sqrtf(direction[0] * direction[0] + direction[1] * direction[1] + direction[2] * direction[2]);
    for (int a = 0; a < 3; a++) unit[a] = direction[a] / length;
    return length;
}

/* Where anything can be drawn. rows: for each pencil of points along z, the first and last, half open, that belong to an
 * occupied cell. box: the same for cells and all three axes; empty where nothing is occupied. */
void volume_extent(int points, const uint8_t *occupied, int32_t *rows, int32_t *box) {
    const int cells = points - 1;
    for (int a = 0; a < 3; a++) box[2 * a] = points, box[2 * a + 1] = 0;
    for (int r = 0; r < points * points; r++) rows[2 * r] = points, rows[2 * r + 1] = 0;
    for (int i = 0; i < cells; i++)
        for (int j = 0; j < cells; j++) {
            const uint8_t *pencil = occupied + ((int64_t)i * cells + j) * cells;
            const uint8_t *found = memchr(pencil, 1, cells);
            if (!found) continue;
            int low = (int)(found - pencil), high = cells;
            while (!pencil[high - 1]) high--;
            const int ranges[3][2] = {{i, i + 1}, {j, j + 1}, {low, high}};
            for (int a = 0; a < 3; a++) {
                if (ranges[a][0] < box[2 * a]) box[2 * a] = ranges[a][0];
                if (ranges[a][1] > box[2 * a + 1]) box[2 * a + 1] = ranges[a][1];
            }
            for (int c = 0; c < 4; c++) {
                int32_t *row = rows + 2 * ((i + c / 2) * points + j + c % 2);
                if (low < row[0]) row[0] = low;
                if (high + 1 > row[1]) row[1] = high + 1;
            }
        }
}

/* One view: nine sums for each ray. Returns 1 where there is no memory. */
int volume_forward(int points, const float *grid, const uint8_t *occupied, const int32_t *box, int rays,
                   const float *origin, const float *directions, const float *offsets, float step, float stop,
                   float *sums) {
    const scene s = {points, 0.5f * (points - 1), grid, occupied, box, origin, step, stop};
    sample *samples = malloc(sizeof(sample) * MOST);
    if (!samples) return 1;
    for (int r = 0; r < rays; r++) {
        float unit[3], length = normalised(directions + 3 * (int64_t)r, unit), total[SUMS] = {0};
        int n = follow(&s, unit, offsets[r], samples);
        for (int k = 0; k < n; k++) {
            const sample *p = samples + k;
            float weight = p->alpha * p->before, facing = fmaxf(cosine(p, unit), 0), tilt = -weight * p->inverse;
            for (int c = 0; c < 3; c++) total[c] += weight * p->active[c + 1];
            total[3] += weight, total[4] += weight * p->t;
            for (int a = 0; a < 3; a++) total[5 + a] += tilt * p->slope[a];
            total[8] += weight * facing * facing;
        }
        total[4] /= length;
        memcpy(sums + SUMS * (int64_t)r, total, sizeof total);
    }
    free(samples);
    return 0;
}

/* Adds a sample's gradient to its eight points: v at the raw numbers, tilt at the slope of x. */
static inline void scatter(const scene *s, const sample *p, four v, const float *tilt, float *gradient) {
    const int64_t row = 4 * s->points, plane = row * s->points;
    float *at = gradient + 4 * (int64_t)p->corner;
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
            float x = i ? p->share[0] : 1 - p->share[0], y = j ? p->share[1] : 1 - p->share[1], z = p->share[2];
            float across = s->half * ((i ? y : -y) * tilt[0] + (j ? x : -x) * tilt[1]), along = s->half * x * y * tilt[2];
            four u = x * y * v, low = (1 - z) * u, high = z * u;
            low[0] += (1 - z) * across - along, high[0] += z * across + along;
            float *q = at + i * plane + j * row;
            low += load(q), high += load(q + 4);
            memcpy(q, &low, sizeof low), memcpy(q + 4, &high, sizeof high);
        }
}

/* One view: the gradient at the grid [points^3][4], of which only the pencils of `rows` are written. */
int volume_backward(int points, const float *grid, const uint8_t *occupied, const int32_t *box, const int32_t *rows,
                    int rays, const float *origin, const float *directions, const float *offsets, float step,
                    float stop, const float *upstream, float *gradient) {
    const scene s = {points, 0.5f * (points - 1), grid, occupied, box, origin, step, stop};
    sample *samples = malloc(sizeof(sample) * MOST);
    if (!samples) return 1;
    for (int r = 0; r < points * points; r++)
        if (rows[2 * r] < rows[2 * r + 1])
            memset(gradient + 4 * ((int64_t)r * points + rows[2 * r]), 0, 16 * (rows[2 * r + 1] - rows[2 * r]));
    for (int r = 0; r < rays; r++) {
        const float *g = upstream + SUMS * (int64_t)r;
        float unit[3], length = normalised(directions + 3 * (int64_t)r, unit), behind = 0;
        int n = follow(&s, unit, offsets[r], samples);
        int tilted = g[5] != 0 || g[6] != 0 || g[7] != 0 || g[8] != 0;
        const four colour = {0, g[0], g[1], g[2]};
        for (int k = n - 1; k >= 0; k--) {
            const sample *p = samples + k;
            float weight = p->alpha * p->before, tilt[3] = {0};
            float worth = g[0] * p->active[1] + g[1] * p->active[2] + g[2] * p->active[3] + g[3] + g[4] * p->t / length;
            if (tilted) {
                float facing = fmaxf(cosine(p, unit), 0), normal[3], asked[3], along = 0;
                for (int a = 0; a < 3; a++) {
                    normal[a] = -p->inverse * p->slope[a];
                    asked[a] = g[5 + a] + 2 * g[8] * facing * unit[a];
                    worth += g[5 + a] * normal[a], along += asked[a] * normal[a];
                }
                worth += g[8] * facing * facing;
                for (int a = 0; a < 3; a++) tilt[a] = -weight * p->inverse * (asked[a] - along * normal[a]);
            }
            four v = weight * colour * p->active * (1 - p->active);
            v[0] = (p->before * (1 - p->alpha) * worth - behind) * s.step * DENSITY_SCALE * p->active[0];
            behind += weight * worth;
            scatter(&s, p, v, tilt, gradient);
        }
    }
    free(samples);
    return 0;
}

/* Sums the views' gradients in their order; 0 outside of the pencils. */
void volume_gather(int points, int views, const int32_t *rows, const float *gradients, float *out) {
    const int64_t size = 4 * (int64_t)points * points * points;
    memset(out, 0, sizeof(float) * size);
    for (int r = 0; r < points * points; r++) {
        const int64_t low = 4 * ((int64_t)r * points + rows[2 * r]), high = 4 * ((int64_t)r * points + rows[2 * r + 1]);
        for (int v = 0; v < views; v++)
            for (int64_t i = low; i < high; i++) out[i] += gradients[v * size + i];
    }
}
