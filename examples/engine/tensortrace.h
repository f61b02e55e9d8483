/* tensortrace.h: record the tensors of an inference engine.  One file, no dependencies, C11 or C++11.
 *
 * In ONE source file of the engine:     #define TENSORTRACE_IMPLEMENTATION
 *                                       #include "tensortrace.h"
 * and wherever something is recorded:   #include "tensortrace.h"
 *
 *     tt_step(ids, n_tokens, position);                            // before each forward pass
 *     tt_3d("q", layer, TT_F32, q, n_tokens, n_heads, head_dim);   // as soon as q is computed
 *
 * Nothing happens unless the environment variable TENSORTRACE_OUT names a file to write; then
 *
 *     trace record -o run.h5 --exec -- ./engine args...            // sets it, and makes a trace of the file
 *
 * Off, a call is one load and one branch that is always taken the same way; its arguments are not evaluated.
 *
 * Names and their axes are in docs/instrument.md: q, k, v, q_rope, k_rope, attn are [token, head, dim], scores
 * and probs [head, query, key], m and l [head, query], most others [token, dim].  Values are read contiguous,
 * last axis fastest; where your axes are in another order say so with tt_tensor_as.  A name of your own is kept
 * as it is.
 *
 * Every record is handed to the operating system before the call returns, so a crash or kill loses nothing
 * that was recorded before it.  Calls from several threads wait for one another; a tensor belongs to the step
 * that any thread announced last.  After fork() only one of the two processes may go on recording.
 *
 * CUDA: define TENSORTRACE_CUDA (and link the CUDA runtime) and pass device pointers as they are.  A call then
 * waits for the device and copies, so it must not be made while a stream is being captured into a graph.
 *
 * The layout of the file is in docs/stream.md.  License: Apache-2.0.
 */
#ifndef TENSORTRACE_H
#define TENSORTRACE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#include <atomic>
typedef std::atomic<int> tt__atomic;
#define TT__LOAD(x) (x).load(std::memory_order_relaxed)
#define TT__STORE(x, value) (x).store(value, std::memory_order_relaxed)
extern "C" {
#else
#include <stdatomic.h>
typedef atomic_int tt__atomic;
#define TT__LOAD(x) atomic_load_explicit(&(x), memory_order_relaxed)
#define TT__STORE(x, value) atomic_store_explicit(&(x), value, memory_order_relaxed)
#endif

typedef enum {
    TT_F32, TT_F16, TT_BF16, TT_F64, TT_F8_E4M3, TT_F8_E5M2,
    TT_I8, TT_I16, TT_I32, TT_I64, TT_U8, TT_U16, TT_U32, TT_U64
} tt_type;

enum { TT_NO_LAYER = -1, TT_NEXT = -1 };

/* Not 0 while recording is on (or nobody has looked at the environment yet). */
extern tt__atomic tt__state;
int tt__on(void);
void tt__meta(const char *key, const char *value);
void tt__step(const int32_t *ids, int n_tokens, int64_t position);
void tt__tensor(const char *name, int layer, tt_type type, const void *data, int n_axes, const int64_t *shape,
                const char *axes);

/* True while recording is on: to guard work that only recording needs. */
#define tt_on() (TT__LOAD(tt__state) != 0 && tt__on())

/* A fact about the run: tt_meta("engine", "mine"); also engine_version, model_name, heads, kv_heads, tile. */
#define tt_meta(key, value) (tt_on() ? tt__meta(key, value) : (void)0)

/* A forward pass over n_tokens ids (NULL: unknown) begins; position is that of the first (TT_NEXT: behind the
 * last ones). */
#define tt_step(ids, n_tokens, position) (tt_on() ? tt__step(ids, n_tokens, position) : (void)0)

/* A tensor of the current step, in the axes that its name has; layer TT_NO_LAYER for embd, final_norm, logits. */
#define tt_tensor(name, layer, type, data, n_axes, shape) \
    (tt_on() ? tt__tensor(name, layer, type, data, n_axes, shape, "") : (void)0)

/* The same with axes of your own, slowest first: "head,token,dim". */
#define tt_tensor_as(name, layer, type, data, n_axes, shape, axes) \
    (tt_on() ? tt__tensor(name, layer, type, data, n_axes, shape, axes) : (void)0)

#define tt_1d(name, layer, type, data, a) \
    (tt_on() ? tt__nd(name, layer, type, data, 1, a, 1, 1) : (void)0)
#define tt_2d(name, layer, type, data, a, b) \
    (tt_on() ? tt__nd(name, layer, type, data, 2, a, b, 1) : (void)0)
#define tt_3d(name, layer, type, data, a, b, c) \
    (tt_on() ? tt__nd(name, layer, type, data, 3, a, b, c) : (void)0)

static inline void tt__nd(const char *name, int layer, tt_type type, const void *data, int n_axes, int64_t a,
                          int64_t b, int64_t c) {
    int64_t shape[3];
    shape[0] = a;
    shape[1] = b;
    shape[2] = c;
    tt__tensor(name, layer, type, data, n_axes, shape, "");
}

#ifdef __cplusplus
}
#endif
#endif /* TENSORTRACE_H */

#if defined(TENSORTRACE_IMPLEMENTATION) && !defined(TENSORTRACE_IMPLEMENTED)
#define TENSORTRACE_IMPLEMENTED

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef TENSORTRACE_CUDA
#include <cuda_runtime_api.h>
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "tensortrace.h writes memory as it is and needs a little-endian machine"
#endif

#define TT__MAX_AXES 8
#define TT__MAX_TEXT 512 /* bytes of a name */

#ifdef __cplusplus
tt__atomic tt__state(-1);
static std::atomic_flag tt__busy = ATOMIC_FLAG_INIT;
#define TT__LOCK() while (tt__busy.test_and_set(std::memory_order_acquire)) {}
#define TT__UNLOCK() tt__busy.clear(std::memory_order_release)
extern "C" {
#else
tt__atomic tt__state = -1;
static atomic_flag tt__busy = ATOMIC_FLAG_INIT;
#define TT__LOCK() while (atomic_flag_test_and_set_explicit(&tt__busy, memory_order_acquire)) {}
#define TT__UNLOCK() atomic_flag_clear_explicit(&tt__busy, memory_order_release)
#endif

static FILE *tt__file;
static int tt__current = -1; /* the step */

/* ---- XXH64 (Yann Collet, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md) */

#define TT__P1 0x9E3779B185EBCA87ull
#define TT__P2 0xC2B2AE3D27D4EB4Full
#define TT__P3 0x165667B19E3779F9ull
#define TT__P4 0x85EBCA77C2B2AE63ull
#define TT__P5 0x27D4EB2F165667C5ull

static uint64_t tt__rotate(uint64_t x, int bits) { return (x << bits) | (x >> (64 - bits)); }

static uint64_t tt__read64(const unsigned char *p) {
    uint64_t value;
    memcpy(&value, p, 8);
    return value;
}

static uint64_t tt__round(uint64_t acc, uint64_t input) {
    return tt__rotate(acc + input * TT__P2, 31) * TT__P1;
}

/* Whole stripes of 32 bytes; returns how many bytes that were. */
static size_t tt__stripes(uint64_t *acc, const unsigned char *p, size_t size) {
    size_t at;
    int lane;
    for (at = 0; at + 32 <= size; at += 32)
        for (lane = 0; lane < 4; lane++) acc[lane] = tt__round(acc[lane], tt__read64(p + at + 8 * lane));
    return at;
}

/* Of head and data one behind the other; where there is data, head must be whole stripes. */
static uint64_t tt__checksum(uint64_t seed, const unsigned char *head, size_t head_size,
                             const unsigned char *data, size_t size) {
    static const int turns[4] = {1, 7, 12, 18};
    uint64_t acc[4], hash;
    const unsigned char *p = size ? data : head, *end = p + (size ? size : head_size);
    int lane;
    acc[0] = seed + TT__P1 + TT__P2;
    acc[1] = seed + TT__P2;
    acc[2] = seed;
    acc[3] = seed - TT__P1;
    if (size) tt__stripes(acc, head, head_size);
    p += tt__stripes(acc, p, (size_t)(end - p));
    if (head_size + size >= 32) {
        hash = 0;
        for (lane = 0; lane < 4; lane++) hash += tt__rotate(acc[lane], turns[lane]);
        for (lane = 0; lane < 4; lane++) hash = (hash ^ tt__round(0, acc[lane])) * TT__P1 + TT__P4;
    } else {
        hash = seed + TT__P5;
    }
    hash += head_size + size;
    for (; p + 8 <= end; p += 8) hash = tt__rotate(hash ^ tt__round(0, tt__read64(p)), 27) * TT__P1 + TT__P4;
    if (p + 4 <= end) {
        uint32_t word;
        memcpy(&word, p, 4);
        hash = tt__rotate(hash ^ word * TT__P1, 23) * TT__P2 + TT__P3;
        p += 4;
    }
    for (; p < end; p++) hash = tt__rotate(hash ^ *p * TT__P5, 11) * TT__P1;
    hash = (hash ^ (hash >> 33)) * TT__P2;
    hash = (hash ^ (hash >> 29)) * TT__P3;
    return hash ^ (hash >> 32);
}

/* ---- records; the lock is held by whoever calls these */

static void tt__stop(const char *why) {
    fprintf(stderr, "tensortrace: recording stopped: %s\n", why);
    TT__STORE(tt__state, 0);
}

static void tt__record(const char *kind, const void *head, size_t head_size, const void *data, size_t size) {
    unsigned char start[24];
    uint64_t length = head_size + size, word, sum;
    uint32_t tag;
    memcpy(&tag, kind, 4);
    sum = tt__checksum(((uint64_t)tag << 32) + length, (const unsigned char *)head, head_size,
                       (const unsigned char *)data, size);
    word = tag; /* and four bytes of zero behind it */
    memcpy(start, &word, 8);
    memcpy(start + 8, &length, 8);
    memcpy(start + 16, &sum, 8);
    if (fwrite(start, 1, sizeof start, tt__file) != sizeof start ||
        fwrite(head, 1, head_size, tt__file) != head_size || fwrite(data, 1, size, tt__file) != size)
        tt__stop("writing failed (is the disk full?)");
}

static void tt__close(void) {
    TT__LOCK();
    if (TT__LOAD(tt__state) > 0) {
        tt__record("END ", "", 0, "", 0);
        TT__STORE(tt__state, 0);
        fclose(tt__file);
    }
    TT__UNLOCK();
}

/* Opens the file that the environment names; another one beside it where that exists, as when several
 * processes record. */
static void tt__open(void) {
    static const unsigned char magic[8] = {'T', 'T', 'R', 'S', 1, 0, 0, 0};
    const char *path = getenv("TENSORTRACE_OUT");
    char other[4096];
    int number;
    if (!path || !*path) {
        TT__STORE(tt__state, 0);
        return;
    }
    tt__file = fopen(path, "wbx");
    for (number = 1; !tt__file && number < 100; number++) {
        snprintf(other, sizeof other, "%s.%d", path, number);
        tt__file = fopen(other, "wbx");
    }
    if (!tt__file) {
        tt__stop("the file that TENSORTRACE_OUT names cannot be created");
        return;
    }
    setvbuf(tt__file, NULL, _IONBF, 0); /* what is recorded must not be lost with the process */
    TT__STORE(tt__state, 1);
    if (fwrite(magic, 1, sizeof magic, tt__file) != sizeof magic) tt__stop("writing failed");
    atexit(tt__close);
}

int tt__on(void) {
    if (TT__LOAD(tt__state) < 0) {
        TT__LOCK();
        if (TT__LOAD(tt__state) < 0) tt__open();
        TT__UNLOCK();
    }
    return TT__LOAD(tt__state) > 0;
}

void tt__meta(const char *key, const char *value) {
    char line[4096];
    int size = snprintf(line, sizeof line, "%s=%s\n", key, value);
    if (size < 0 || size >= (int)sizeof line) return;
    TT__LOCK();
    if (TT__LOAD(tt__state) > 0) tt__record("HEAD", line, (size_t)size, "", 0);
    TT__UNLOCK();
}

void tt__step(const int32_t *ids, int n_tokens, int64_t position) {
    unsigned char *body;
    int32_t count = n_tokens > 0 ? n_tokens : 0;
    size_t size = 16 + 4 * (size_t)count;
    TT__LOCK();
    tt__current++;
    body = (unsigned char *)malloc(size);
    if (!body) tt__stop("out of memory");
    if (TT__LOAD(tt__state) > 0) {
        memcpy(body, &tt__current, 4);
        memcpy(body + 4, &count, 4);
        memcpy(body + 8, &position, 8);
        memset(body + 16, 0xFF, 4 * (size_t)count); /* -1: not known */
        if (ids) memcpy(body + 16, ids, 4 * (size_t)count);
        tt__record("STEP", body, size, "", 0);
    }
    free(body);
    TT__UNLOCK();
}

/* `data` in host memory: itself, or a copy that is then also put into `copy` for freeing; NULL on failure. */
static const void *tt__host(const void *data, size_t size, void **copy) {
    *copy = NULL;
#ifdef TENSORTRACE_CUDA
    struct cudaPointerAttributes where;
    if (cudaPointerGetAttributes(&where, data) == cudaSuccess && where.type == cudaMemoryTypeDevice) {
        *copy = malloc(size ? size : 1);
        if (!*copy || cudaDeviceSynchronize() != cudaSuccess ||
            cudaMemcpy(*copy, data, size, cudaMemcpyDeviceToHost) != cudaSuccess)
            return NULL;
        return *copy;
    }
    (void)cudaGetLastError(); /* an older runtime calls plain host memory an error */
    if (cudaDeviceSynchronize() != cudaSuccess) return NULL; /* for managed and mapped memory */
#else
    (void)size;
#endif
    return data;
}

/* Appends the text and its NUL; what does not fit is cut. */
static size_t tt__text(unsigned char *head, size_t at, const char *text) {
    size_t size = strlen(text);
    if (size > TT__MAX_TEXT) size = TT__MAX_TEXT;
    memcpy(head + at, text, size);
    head[at + size] = 0;
    return at + size + 1;
}

void tt__tensor(const char *name, int layer, tt_type type, const void *data, int n_axes, const int64_t *shape,
                const char *axes) {
    static const char *const names[] = {"float32", "float16", "bfloat16", "float64", "float8_e4m3fn",
                                        "float8_e5m2", "int8", "int16", "int32", "int64", "uint8",
                                        "uint16", "uint32", "uint64"};
    static const size_t sizes[] = {4, 2, 2, 8, 1, 1, 1, 2, 4, 8, 1, 2, 4, 8};
    unsigned char head[16 + 8 * TT__MAX_AXES + 4 * (TT__MAX_TEXT + 1) + 32];
    size_t size = sizes[type], at = 16 + 8 * (size_t)n_axes;
    int32_t numbers[4];
    const void *host;
    void *copy;
    int axis;
    if (n_axes < 0 || n_axes > TT__MAX_AXES) return;
    for (axis = 0; axis < n_axes; axis++) {
        if (shape[axis] < 0) return;
        size *= (size_t)shape[axis];
    }
    memset(head, 0, sizeof head);
    if (n_axes) memcpy(head + 16, shape, 8 * (size_t)n_axes);
    at = tt__text(head, at, name);
    at = tt__text(head, at, names[type]);
    at = tt__text(head, at, axes);
    at = tt__text(head, at, ""); /* the engine's own name, where the one above is ours */
    at = (at + 31) / 32 * 32;
    TT__LOCK();
    if (tt__current < 0) tt__current = 0;
    host = tt__host(data, size, &copy);
    if (!host && size) tt__stop("the tensor cannot be copied from the device");
    if (TT__LOAD(tt__state) > 0) {
        numbers[0] = tt__current;
        numbers[1] = layer;
        numbers[2] = n_axes;
        numbers[3] = (int32_t)(at - 16 - 8 * (size_t)n_axes);
        memcpy(head, numbers, 16);
        tt__record("TENS", head, at, host, size);
    }
    free(copy);
    TT__UNLOCK();
}

#ifdef __cplusplus
}
#endif
#endif /* TENSORTRACE_IMPLEMENTATION */
