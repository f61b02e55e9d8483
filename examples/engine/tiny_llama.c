/* A small Llama in plain C: what an engine's forward pass looks like with tensortrace.h in it.
 *
 *     cc -O2 -o tiny_llama tiny_llama.c -lm
 *     trace record -o run.h5 --exec -- ./tiny_llama weights.bin N_NEW ID ID ...
 *
 * weights.bin: int32 layers, heads, kv_heads, head_dim, width, ffn, vocab; float32 eps, rope_base; then float32
 * matrices [out, in] in the order of `read_model`.  RoPE rotates interleaved pairs, as in GGUF's llama.
 * License: Apache-2.0.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TENSORTRACE_IMPLEMENTATION
#include "tensortrace.h"

#define TILE 16 /* keys that the attention loop takes at a time */

typedef struct {
    float *attn_norm, *wq, *wk, *wv, *wo, *ffn_norm, *gate, *up, *down;
    float *k_cache, *v_cache; /* [position, kv_head, dim] */
} Layer;

typedef struct {
    int layers, heads, kv_heads, dim, width, ffn, vocab;
    float eps, rope_base;
    float *embedding, *output_norm, *output;
    Layer *layer;
} Model;

static void *checked(void *pointer) {
    if (!pointer) {
        fprintf(stderr, "tiny_llama: out of memory\n");
        exit(1);
    }
    return pointer;
}

static float *floats(size_t count) { return checked(calloc(count, sizeof(float))); }

static float *read_floats(FILE *file, size_t count) {
    float *values = floats(count);
    if (fread(values, sizeof(float), count, file) != count) {
        fprintf(stderr, "tiny_llama: the weights end too early\n");
        exit(1);
    }
    return values;
}

static Model read_model(const char *path, int positions) {
    Model m;
    int sizes[7], i;
    float numbers[2];
    FILE *file = fopen(path, "rb");
    if (!file || fread(sizes, 4, 7, file) != 7 || fread(numbers, 4, 2, file) != 2) {
        fprintf(stderr, "tiny_llama: cannot read %s\n", path);
        exit(1);
    }
    m.layers = sizes[0], m.heads = sizes[1], m.kv_heads = sizes[2], m.dim = sizes[3];
    m.width = sizes[4], m.ffn = sizes[5], m.vocab = sizes[6];
    m.eps = numbers[0], m.rope_base = numbers[1];
    size_t width = (size_t)m.width, q = (size_t)(m.heads * m.dim), kv = (size_t)(m.kv_heads * m.dim);
    m.embedding = read_floats(file, (size_t)m.vocab * width);
    m.layer = checked(calloc((size_t)m.layers, sizeof(Layer)));
    for (i = 0; i < m.layers; i++) {
        Layer *l = &m.layer[i];
        l->attn_norm = read_floats(file, width);
        l->wq = read_floats(file, q * width);
        l->wk = read_floats(file, kv * width);
        l->wv = read_floats(file, kv * width);
        l->wo = read_floats(file, width * q);
        l->ffn_norm = read_floats(file, width);
        l->gate = read_floats(file, (size_t)m.ffn * width);
        l->up = read_floats(file, (size_t)m.ffn * width);
        l->down = read_floats(file, width * (size_t)m.ffn);
        l->k_cache = floats((size_t)positions * kv);
        l->v_cache = floats((size_t)positions * kv);
    }
    m.output_norm = read_floats(file, width);
    m.output = read_floats(file, (size_t)m.vocab * width);
    fclose(file);
    return m;
}

/* out[row, o] = sum over i of x[row, i] * w[o, i] */
static void linear(float *out, const float *x, const float *w, int rows, int n_in, int n_out) {
    for (int row = 0; row < rows; row++)
        for (int o = 0; o < n_out; o++) {
            double sum = 0;
            for (int i = 0; i < n_in; i++) sum += (double)x[row * n_in + i] * w[o * n_in + i];
            out[row * n_out + o] = (float)sum;
        }
}

static void rms_norm(float *out, const float *x, const float *weight, int rows, int width, float eps) {
    for (int row = 0; row < rows; row++) {
        double squares = 0;
        for (int i = 0; i < width; i++) squares += (double)x[row * width + i] * x[row * width + i];
        float scale = (float)(1 / sqrt(squares / width + eps));
        for (int i = 0; i < width; i++) out[row * width + i] = x[row * width + i] * scale * weight[i];
    }
}

static void rope(float *out, const float *x, int rows, int heads, int dim, int start, float base) {
    for (int row = 0; row < rows; row++)
        for (int head = 0; head < heads; head++)
            for (int i = 0; i < dim; i += 2) {
                double angle = (start + row) * pow(base, -(double)i / dim);
                float c = (float)cos(angle), s = (float)sin(angle);
                const float *pair = x + (row * heads + head) * dim + i;
                float *turned = out + (row * heads + head) * dim + i;
                turned[0] = pair[0] * c - pair[1] * s;
                turned[1] = pair[0] * s + pair[1] * c;
            }
}

/* What the attention kernel hands out beside its result; NULL while nobody records. */
typedef struct {
    float *scores, *probs;   /* [head, query, key] */
    float *m, *l;            /* [head, query] */
    float *m_tiles, *l_tiles; /* [tile, head, query]: the running values after each tile */
} Inside;

/* Attention of one query row by online softmax: m is the largest score so far, l the sum of exp(score - m);
 * where a tile raises m, what was summed before is scaled down by exp(m_old - m_new). */
static void attend(float *out, const float *q, const Layer *layer, const Model *model, int head, int rows,
                   int row, int keys, const Inside *inside) {
    int dim = model->dim, kv_head = head / (model->heads / model->kv_heads);
    int position = keys - rows + row, at = head * rows + row;
    float m = -INFINITY, l = 0, scale = 1 / sqrtf((float)dim);
    memset(out, 0, (size_t)dim * sizeof(float));
    for (int tile = 0; tile * TILE < keys; tile++) {
        float scores[TILE], m_new = m;
        int count = keys - tile * TILE < TILE ? keys - tile * TILE : TILE;
        for (int j = 0; j < count; j++) {
            int key = tile * TILE + j;
            const float *k = layer->k_cache + (key * model->kv_heads + kv_head) * dim;
            float dot = 0;
            for (int i = 0; i < dim; i++) dot += q[i] * k[i];
            scores[j] = key <= position ? dot * scale : -INFINITY;
            m_new = fmaxf(m_new, scores[j]);
            if (inside) inside->scores[at * keys + key] = scores[j];
        }
        float shrink = isinf(m) ? 0 : expf(m - m_new);
        for (int i = 0; i < dim; i++) out[i] *= shrink;
        l *= shrink;
        for (int j = 0; j < count && !isinf(m_new); j++) {
            const float *v = layer->v_cache + ((tile * TILE + j) * model->kv_heads + kv_head) * dim;
            float p = expf(scores[j] - m_new);
            for (int i = 0; i < dim; i++) out[i] += p * v[i];
            l += p;
        }
        m = m_new;
        if (inside) {
            inside->m_tiles[tile * model->heads * rows + at] = m;
            inside->l_tiles[tile * model->heads * rows + at] = l;
        }
    }
    for (int i = 0; i < dim; i++) out[i] /= l;
    if (inside) {
        inside->m[at] = m;
        inside->l[at] = l;
        for (int key = 0; key < keys; key++)
            inside->probs[at * keys + key] = expf(inside->scores[at * keys + key] - m) / l;
    }
}

static void attention(float *out, const float *q, const Model *model, int index, int rows, int keys) {
    int heads = model->heads, dim = model->dim, tiles = (keys + TILE - 1) / TILE;
    Inside arrays, *inside = NULL;
    float *memory = NULL;
    if (tt_on()) { /* only recording needs them */
        size_t line = (size_t)(heads * rows), square = line * (size_t)keys, stack = line * (size_t)tiles;
        memory = floats(2 * square + 2 * line + 2 * stack);
        arrays.scores = memory, arrays.probs = arrays.scores + square;
        arrays.m = arrays.probs + square, arrays.l = arrays.m + line;
        arrays.m_tiles = arrays.l + line, arrays.l_tiles = arrays.m_tiles + stack;
        inside = &arrays;
    }
    for (int row = 0; row < rows; row++)
        for (int head = 0; head < heads; head++) {
            int at = (row * heads + head) * dim;
            attend(out + at, q + at, &model->layer[index], model, head, rows, row, keys, inside);
        }
    if (inside) {
        tt_3d("scores", index, TT_F32, inside->scores, heads, rows, keys);
        tt_3d("m_tiles", index, TT_F32, inside->m_tiles, tiles, heads, rows);
        tt_3d("l_tiles", index, TT_F32, inside->l_tiles, tiles, heads, rows);
        tt_2d("m", index, TT_F32, inside->m, heads, rows);
        tt_2d("l", index, TT_F32, inside->l, heads, rows);
        tt_3d("probs", index, TT_F32, inside->probs, heads, rows, keys);
    }
    free(memory);
}

static void add(float *x, const float *y, int count) {
    for (int i = 0; i < count; i++) x[i] += y[i];
}

static void run_layer(float *x, const Model *m, int index, int rows, int start) {
    const Layer *l = &m->layer[index];
    int heads = m->heads, kv_heads = m->kv_heads, dim = m->dim, width = m->width;
    int q_width = heads * dim, kv_width = kv_heads * dim;
    float *h = floats((size_t)(rows * width)), *out = floats((size_t)(rows * width));
    float *q = floats((size_t)(rows * q_width)), *turned = floats((size_t)(rows * q_width));
    float *k = floats((size_t)(rows * kv_width));
    float *gate = floats((size_t)(rows * m->ffn)), *up = floats((size_t)(rows * m->ffn));
    float *k_new = l->k_cache + start * kv_width, *v_new = l->v_cache + start * kv_width;

    rms_norm(h, x, l->attn_norm, rows, width, m->eps);
    tt_2d("attn_norm", index, TT_F32, h, rows, width);
    linear(q, h, l->wq, rows, width, q_width);
    tt_3d("q", index, TT_F32, q, rows, heads, dim);
    linear(k, h, l->wk, rows, width, kv_width);
    tt_3d("k", index, TT_F32, k, rows, kv_heads, dim);
    linear(v_new, h, l->wv, rows, width, kv_width);
    tt_3d("v", index, TT_F32, v_new, rows, kv_heads, dim);
    rope(turned, q, rows, heads, dim, start, m->rope_base);
    tt_3d("q_rope", index, TT_F32, turned, rows, heads, dim);
    rope(k_new, k, rows, kv_heads, dim, start, m->rope_base);
    tt_3d("k_rope", index, TT_F32, k_new, rows, kv_heads, dim);
    attention(q, turned, m, index, rows, start + rows);
    tt_3d("attn", index, TT_F32, q, rows, heads, dim);
    linear(out, q, l->wo, rows, q_width, width);
    tt_2d("attn_out", index, TT_F32, out, rows, width);
    add(x, out, rows * width);
    tt_2d("resid_mid", index, TT_F32, x, rows, width);

    rms_norm(h, x, l->ffn_norm, rows, width, m->eps);
    tt_2d("ffn_norm", index, TT_F32, h, rows, width);
    linear(gate, h, l->gate, rows, width, m->ffn);
    tt_2d("gate", index, TT_F32, gate, rows, m->ffn);
    linear(up, h, l->up, rows, width, m->ffn);
    tt_2d("up", index, TT_F32, up, rows, m->ffn);
    for (int i = 0; i < rows * m->ffn; i++) gate[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
    tt_2d("act", index, TT_F32, gate, rows, m->ffn);
    linear(out, gate, l->down, rows, m->ffn, width);
    tt_2d("ffn_out", index, TT_F32, out, rows, width);
    add(x, out, rows * width);
    tt_2d("resid_out", index, TT_F32, x, rows, width);
    free(h), free(out), free(q), free(turned), free(k), free(gate), free(up);
}

/* Feeds `rows` ids from position `start` on; returns the likeliest next one. */
static int forward(const Model *m, const int32_t *ids, int rows, int start) {
    float *x = floats((size_t)(rows * m->width)), *logits = floats((size_t)(rows * m->vocab));
    int best = 0;
    tt_step(ids, rows, start);
    for (int row = 0; row < rows; row++)
        memcpy(x + row * m->width, m->embedding + ids[row] * m->width, (size_t)m->width * sizeof(float));
    tt_2d("embd", TT_NO_LAYER, TT_F32, x, rows, m->width);
    for (int index = 0; index < m->layers; index++) run_layer(x, m, index, rows, start);
    rms_norm(x, x, m->output_norm, rows, m->width, m->eps);
    tt_2d("final_norm", TT_NO_LAYER, TT_F32, x, rows, m->width);
    linear(logits, x, m->output, rows, m->width, m->vocab);
    tt_2d("logits", TT_NO_LAYER, TT_F32, logits, rows, m->vocab);
    const float *last = logits + (rows - 1) * m->vocab;
    for (int i = 1; i < m->vocab; i++)
        if (last[i] > last[best]) best = i;
    free(x), free(logits);
    return best;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: tiny_llama weights.bin N_NEW ID ID ...\n");
        return 1;
    }
    int n_new = atoi(argv[2]), rows = argc - 3;
    int32_t *ids = checked(calloc((size_t)(rows + n_new), sizeof *ids));
    for (int i = 0; i < rows; i++) ids[i] = atoi(argv[3 + i]);
    Model model = read_model(argv[1], rows + n_new);
    tt_meta("engine", "tiny_llama");
    tt_meta("tile", "16");
    int start = 0;
    for (int i = 0; i < n_new; i++) {
        ids[start + rows] = forward(&model, ids + start, rows, start);
        start += rows;
        rows = 1;
        printf("%d\n", ids[start]);
    }
    return 0;
}
