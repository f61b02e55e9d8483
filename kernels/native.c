/* The Python module `_native`: checks the sizes of buffers, lets go of the interpreter, calls a kernel. */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "native.h"

/* One of the pairs that `differ` takes, with the buffers that it is made of. */
typedef struct {
  Pair pair;
  Py_buffer a, b, starts, valid, out, lost;
} Task;

/* 0 where the item is no pair, with an exception set; buffers are held then, too. */
static int read_task(PyObject *item, Task *t) {
  PyObject *floor;
  if (!PyArg_ParseTuple(item, "y*y*z*z*lOpw*w*", &t->a, &t->b, &t->starts, &t->valid, &t->pair.head_dim,
                        &floor, &t->pair.mapped, &t->out, &t->lost))
    return 0;
  Pair *p = &t->pair;
  p->a = t->a.buf, p->b = t->b.buf, p->starts = t->starts.buf, p->valid = t->valid.buf;
  p->rows = (long)t->lost.len;
  p->width = p->rows ? t->a.len / (long)sizeof(float) / p->rows : 0;
  p->groups = p->starts ? t->starts.len / (long)sizeof(long long) : p->rows;
  p->masked = floor != Py_None;
  p->floor = p->masked ? (float)PyFloat_AsDouble(floor) : 0;
  if (PyErr_Occurred()) return 0;
  if (p->head_dim >= 0 && (!p->head_dim || p->width % p->head_dim == 0) &&
      t->a.len == p->rows * p->width * (long)sizeof(float) && t->b.len == t->a.len &&
      (!p->valid || t->valid.len == p->rows * (long)sizeof(long long)) &&
      t->out.len == DIFFERENCES * p->groups * (long)sizeof(double) && (p->groups || !p->rows))
    return 1;
  PyErr_SetString(PyExc_ValueError, "differ: the arrays do not fit together");
  return 0;
}

static void release_task(Task *t) {
  Py_buffer *held[] = {&t->a, &t->b, &t->starts, &t->valid, &t->out, &t->lost};
  for (int i = 0; i < 6; ++i)
    if (held[i]->obj) PyBuffer_Release(held[i]);
}

static PyObject *py_differ(PyObject *self, PyObject *pairs) {
  const Py_ssize_t count = PyList_Check(pairs) ? PyList_Size(pairs) : 0;
  Task *tasks = PyMem_Calloc(count + 1, sizeof(Task));
  Py_ssize_t read = 0;
  (void)self;
  if (!tasks) return PyErr_NoMemory();
  while (read < count && read_task(PyList_GetItem(pairs, read), &tasks[read])) ++read;
  if (read == count) {
    Py_BEGIN_ALLOW_THREADS;
    for (Py_ssize_t i = 0; i < count; ++i) differ(&tasks[i].pair, tasks[i].out.buf, tasks[i].lost.buf);
    Py_END_ALLOW_THREADS;
  }
  for (Py_ssize_t i = 0; i < count; ++i) release_task(&tasks[i]);
  PyMem_Free(tasks);
  if (read < count) return NULL;
  Py_RETURN_NONE;
}

static PyObject *py_multiply(PyObject *self, PyObject *arguments) {
  Py_buffer w, x, out;
  const char *kind;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "sy*y*w*", &kind, &w, &x, &out)) return NULL;
  const Format *format = format_of(kind);
  const long rows = out.len / (long)sizeof(float), columns = x.len / (long)sizeof(float);
  float *sums = format ? PyMem_Malloc(x.len / format->group + sizeof(float)) : NULL;
  const int fits = sums && columns % format->block == 0 && x.len % (long)sizeof(float) == 0 &&
                   out.len % (long)sizeof(float) == 0 && w.len == rows * (columns / format->block) * format->bytes;
  if (fits) {
    Py_BEGIN_ALLOW_THREADS;
    multiply(format, w.buf, rows, columns, x.buf, sums, out.buf);
    Py_END_ALLOW_THREADS;
  }
  PyMem_Free(sums);
  PyBuffer_Release(&w);
  PyBuffer_Release(&x);
  PyBuffer_Release(&out);
  if (fits) Py_RETURN_NONE;
  PyErr_Format(PyExc_ValueError, "multiply: no product with %s, or the arrays do not fit together", kind);
  return NULL;
}

/* The place for scores [kv_heads][group][queries][keys] in a larger array; 0 where they do not fit. */
static int read_kept(const Py_buffer *kept, Tile *t) {
  if (!kept->obj) return 1;
  const Py_ssize_t *const shape = kept->shape, *const strides = kept->strides, size = sizeof(float);
  t->kept = kept->buf;
  t->kept_head = (long)(strides[1] / size), t->kept_query = (long)(strides[2] / size);
  return kept->ndim == 4 && shape[0] * shape[1] == t->heads && shape[2] == t->queries && shape[3] == t->keys &&
         (strides[3] == size || shape[3] == 1) && (strides[0] == shape[1] * strides[1] || shape[0] == 1);
}

static PyObject *py_fold(PyObject *self, PyObject *arguments) {
  PyObject *place;
  Py_buffer scores, m, l, shrink, first, last, kept = {0};
  (void)self;
  if (!PyArg_ParseTuple(arguments, "w*w*w*w*y*y*O", &scores, &m, &l, &shrink, &first, &last, &place)) return NULL;
  int fits = place == Py_None || !PyObject_GetBuffer(place, &kept, PyBUF_STRIDES | PyBUF_WRITABLE);
  if (fits) {
    Tile t = {scores.buf, m.buf, l.buf, shrink.buf, NULL, first.buf, last.buf, 0, 0, 0, 0, 0};
    const long rows = (long)(m.len / (Py_ssize_t)sizeof(float));
    t.queries = (long)(first.len / (Py_ssize_t)sizeof(int));
    t.heads = t.queries ? rows / t.queries : 0;
    t.keys = rows ? (long)(scores.len / (Py_ssize_t)sizeof(float)) / rows : 0;
    fits = l.len == m.len && shrink.len == m.len && last.len == first.len && t.heads * t.queries == rows &&
           scores.len == rows * t.keys * (long)sizeof(float) && read_kept(&kept, &t);
    for (long i = 0; i < t.queries && fits; ++i)
      fits = 0 <= t.first[i] && t.first[i] <= t.last[i] && t.last[i] <= t.keys;
    if (fits) {
      Py_BEGIN_ALLOW_THREADS;
      fold(&t);
      Py_END_ALLOW_THREADS;
    } else PyErr_SetString(PyExc_ValueError, "fold: the arrays do not fit together");
    if (kept.obj) PyBuffer_Release(&kept);
  }
  Py_buffer *held[] = {&scores, &m, &l, &shrink, &first, &last};
  for (int i = 0; i < 6; ++i) PyBuffer_Release(held[i]);
  if (!fits) return NULL;
  Py_RETURN_NONE;
}

static PyObject *py_attend(PyObject *self, PyObject *arguments) {
  Py_buffer q, k, v, sinks, out, scores, probs, m, l, m_tiles, l_tiles;
  Token t = {0};
  (void)self;
  if (!PyArg_ParseTuple(arguments, "y*y*y*z*(lllff)w*w*w*w*w*w*w*", &q, &k, &v, &sinks, &t.kv_heads, &t.tile,
                        &t.first, &t.scale, &t.softcap, &out, &scores, &probs, &m, &l, &m_tiles, &l_tiles))
    return NULL;
  const long size = sizeof(float);
  t.q = q.buf, t.k = k.buf, t.v = v.buf, t.sinks = sinks.buf, t.out = out.buf, t.scores = scores.buf;
  t.probs = probs.buf, t.m = m.buf, t.l = l.buf, t.m_tiles = m_tiles.buf, t.l_tiles = l_tiles.buf;
  t.heads = (long)m.len / size;
  t.dim = t.heads ? (long)q.len / size / t.heads : 0;
  t.keys = t.heads ? (long)scores.len / size / t.heads : 0;
  const long tiles = t.tile > 0 ? (t.keys + t.tile - 1) / t.tile : 0;
  const int fits = t.kv_heads > 0 && t.heads % t.kv_heads == 0 && t.tile > 0 && 0 <= t.first && t.first <= t.keys &&
                   q.len == t.heads * t.dim * size && k.len == t.keys * t.kv_heads * t.dim * size &&
                   v.len == k.len && out.len == q.len && scores.len == t.heads * t.keys * size &&
                   probs.len == scores.len && l.len == m.len && m_tiles.len == tiles * t.heads * size &&
                   l_tiles.len == m_tiles.len && (!sinks.obj || sinks.len == m.len);
  if (fits) {
    Py_BEGIN_ALLOW_THREADS;
    attend(&t);
    Py_END_ALLOW_THREADS;
  } else PyErr_SetString(PyExc_ValueError, "attend: the arrays do not fit together");
  Py_buffer *held[] = {&q, &k, &v, &sinks, &out, &scores, &probs, &m, &l, &m_tiles, &l_tiles};
  for (int i = 0; i < 11; ++i)
    if (held[i]->obj) PyBuffer_Release(held[i]);
  if (!fits) return NULL;
  Py_RETURN_NONE;
}

static PyObject *py_silu_glu(PyObject *self, PyObject *arguments) {
  Py_buffer gate, up, out;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "y*y*w*", &gate, &up, &out)) return NULL;
  const int fits = gate.len == out.len && up.len == out.len && out.len % (Py_ssize_t)sizeof(float) == 0;
  if (fits) {
    Py_BEGIN_ALLOW_THREADS;
    silu_glu(gate.buf, up.buf, out.buf, (long)(out.len / (Py_ssize_t)sizeof(float)));
    Py_END_ALLOW_THREADS;
  }
  PyBuffer_Release(&gate);
  PyBuffer_Release(&up);
  PyBuffer_Release(&out);
  if (fits) Py_RETURN_NONE;
  PyErr_SetString(PyExc_ValueError, "silu_glu: the arrays do not fit together");
  return NULL;
}

static PyObject *py_rms_norm(PyObject *self, PyObject *arguments) {
  Py_buffer x, gain, out;
  float eps;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "y*y*fw*", &x, &gain, &eps, &out)) return NULL;
  const int fits = gain.len > 0 && x.len % gain.len == 0 && out.len == x.len && gain.len % (Py_ssize_t)sizeof(float) == 0;
  if (fits) {
    Py_BEGIN_ALLOW_THREADS;
    rms_norm(x.buf, gain.buf, out.buf, (long)(x.len / gain.len), (long)(gain.len / (Py_ssize_t)sizeof(float)), eps);
    Py_END_ALLOW_THREADS;
  }
  PyBuffer_Release(&x);
  PyBuffer_Release(&gain);
  PyBuffer_Release(&out);
  if (fits) Py_RETURN_NONE;
  PyErr_SetString(PyExc_ValueError, "rms_norm: the arrays do not fit together");
  return NULL;
}

static PyObject *py_rotate(PyObject *self, PyObject *arguments) {
  Py_buffer x, cosines, sines, out;
  Heads shape = {0};
  int interleaved;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "y*y*y*(llll)pw*", &x, &cosines, &sines, &shape.tokens, &shape.heads, &shape.dim,
                        &shape.pairs, &interleaved, &out))
    return NULL;
  const long size = sizeof(float);
  const int fits = x.len == shape.tokens * shape.heads * shape.dim * size && out.len == x.len && shape.pairs >= 0 &&
                   2 * shape.pairs <= shape.dim && cosines.len == shape.tokens * shape.pairs * size &&
                   sines.len == cosines.len;
  if (fits) {
    Py_BEGIN_ALLOW_THREADS;
    rotate(x.buf, cosines.buf, sines.buf, out.buf, &shape, interleaved);
    Py_END_ALLOW_THREADS;
  }
  Py_buffer *held[] = {&x, &cosines, &sines, &out};
  for (int i = 0; i < 4; ++i) PyBuffer_Release(held[i]);
  if (fits) Py_RETURN_NONE;
  PyErr_SetString(PyExc_ValueError, "rotate: the arrays do not fit together");
  return NULL;
}

static PyMethodDef methods[] = {
    {"differ", py_differ, METH_O, "differ([(a, b, starts, valid, head_dim, floor, mapped, out, lost), ...])"},
    {"attend", py_attend, METH_VARARGS,
     "attend(q, k, v, sinks, (kv_heads, tile, first, scale, softcap), out, scores, probs, m, l, m_tiles, l_tiles)"},
    {"fold", py_fold, METH_VARARGS, "fold(scores, m, l, shrink, first, last, kept)"},
    {"rms_norm", py_rms_norm, METH_VARARGS, "rms_norm(x, gain, eps, out)"},
    {"rotate", py_rotate, METH_VARARGS, "rotate(x, cosines, sines, (tokens, heads, dim, pairs), interleaved, out)"},
    {"silu_glu", py_silu_glu, METH_VARARGS, "silu_glu(gate, up, out)"},
    {"multiply", py_multiply, METH_VARARGS, "multiply(kind, w, x, out)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&module); }
