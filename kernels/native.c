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

/* Ends a call: gives the buffers back, and says what was wrong where they did not fit. */
static PyObject *end(const char *name, int fits, Py_buffer *const *held, int count) {
  for (int i = 0; i < count; ++i)
    if (held[i]->obj) PyBuffer_Release(held[i]);
  if (fits) Py_RETURN_NONE;
  if (!PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "%s: the arrays do not fit together", name);
  return NULL;
}

#define END(NAME, FITS, ...) \
  end(NAME, FITS, (Py_buffer *const[]){__VA_ARGS__}, sizeof((Py_buffer *[]){__VA_ARGS__}) / sizeof(Py_buffer *))

static long floats(const Py_buffer *buffer) { return (long)(buffer->len / (Py_ssize_t)sizeof(float)); }

static PyObject *py_multiply(PyObject *self, PyObject *arguments) {
  Py_buffer w, x, out;
  const char *kind;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "sy*y*w*", &kind, &w, &x, &out)) return NULL;
  const Format *format = format_of(kind);
  const long rows = floats(&out), columns = floats(&x);
  float *sums = format ? PyMem_Malloc(x.len / format->group + sizeof(float)) : NULL;
  const int fits = sums && columns % format->block == 0 && x.len % (long)sizeof(float) == 0 &&
                   out.len % (long)sizeof(float) == 0 &&
                   w.len == rows * (columns / format->block) * format->bytes;
  if (fits) {
    Py_BEGIN_ALLOW_THREADS;
    multiply(format, w.buf, rows, columns, x.buf, sums, out.buf);
    Py_END_ALLOW_THREADS;
  }
  PyMem_Free(sums);
  if (!format) PyErr_Format(PyExc_ValueError, "multiply: no product with %s", kind);
  return END("multiply", fits, &w, &x, &out);
}

/* Whether a query's keys lie between 0 and the last. */
static int are_keys(const Attention *t) {
  int fits = 1;
  for (long i = 0; i < t->tokens; ++i)
    fits &= 0 <= t->first[i] && t->first[i] <= t->last[i] && t->last[i] <= t->keys;
  return fits;
}

/* Where a result goes; null where there is no room, as nobody wants it. */
static float *wanted(const Py_buffer *result) { return result->len ? result->buf : NULL; }

static PyObject *py_attend(PyObject *self, PyObject *arguments) {
  Py_buffer q, k, v, sinks, first, last, out, scores, probs, m, l, m_tiles, l_tiles;
  Attention t = {0};
  int lost = 0;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "y*y*y*z*y*y*(lllff)w*w*w*w*w*w*w*", &q, &k, &v, &sinks, &first, &last,
                        &t.heads, &t.kv_heads, &t.tile, &t.scale, &t.softcap, &out, &scores, &probs, &m, &l,
                        &m_tiles, &l_tiles))
    return NULL;
  t.q = q.buf, t.k = k.buf, t.v = v.buf, t.sinks = sinks.buf, t.first = first.buf, t.last = last.buf;
  t.out = out.buf, t.m = m.buf, t.l = l.buf;
  t.scores = wanted(&scores), t.probs = wanted(&probs);
  t.m_tiles = wanted(&m_tiles), t.l_tiles = wanted(&l_tiles);
  t.tokens = (long)(first.len / (Py_ssize_t)sizeof(int));
  const long size = sizeof(float), rows = t.tokens * t.heads, numbers = floats(&q);
  t.dim = rows > 0 ? numbers / rows : 0;
  t.keys = t.dim && t.kv_heads > 0 ? floats(&k) / (t.kv_heads * t.dim) : 0;
  const long tiles = t.tile > 0 ? (t.keys + t.tile - 1) / t.tile : 0;
  const int fits = t.dim > 0 && t.kv_heads > 0 && t.heads % t.kv_heads == 0 && t.tile > 0 &&
                   q.len == rows * t.dim * size && k.len == t.keys * t.kv_heads * t.dim * size &&
                   v.len == k.len && out.len == q.len && m.len == rows * size && l.len == m.len &&
                   last.len == first.len && (!sinks.obj || sinks.len == t.heads * size) &&
                   (!t.scores || scores.len == rows * t.keys * size) &&
                   (!t.probs || (probs.len == rows * t.keys * size && t.m_tiles)) &&
                   (!t.m_tiles || m_tiles.len == tiles * rows * size) &&
                   (!t.l_tiles || l_tiles.len == tiles * rows * size) &&
                   are_keys(&t);
  if (fits) {
    Py_BEGIN_ALLOW_THREADS;
    lost = !attend(&t);
    Py_END_ALLOW_THREADS;
  }
  if (lost) PyErr_NoMemory();
  return END("attend", fits && !lost, &q, &k, &v, &sinks, &first, &last, &out, &scores, &probs, &m, &l,
             &m_tiles, &l_tiles);
}

static PyObject *py_silu_glu(PyObject *self, PyObject *arguments) {
  Py_buffer gate, up, out;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "y*y*w*", &gate, &up, &out)) return NULL;
  const int fits = gate.len == out.len && up.len == out.len;
  if (fits) {
    Py_BEGIN_ALLOW_THREADS;
    silu_glu(gate.buf, up.buf, out.buf, floats(&out));
    Py_END_ALLOW_THREADS;
  }
  return END("silu_glu", fits, &gate, &up, &out);
}

static PyObject *py_rms_norm(PyObject *self, PyObject *arguments) {
  Py_buffer x, gain, out;
  float eps;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "y*y*fw*", &x, &gain, &eps, &out)) return NULL;
  const long dim = floats(&gain);
  const int fits = dim > 0 && floats(&x) % dim == 0 && out.len == x.len;
  if (fits) {
    Py_BEGIN_ALLOW_THREADS;
    rms_norm(x.buf, gain.buf, out.buf, floats(&x) / dim, dim, eps);
    Py_END_ALLOW_THREADS;
  }
  return END("rms_norm", fits, &x, &gain, &out);
}

static PyObject *py_rotate(PyObject *self, PyObject *arguments) {
  Py_buffer x, cosines, sines, out;
  Heads h;
  int interleaved;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "y*y*y*(llll)pw*", &x, &cosines, &sines, &h.tokens, &h.heads, &h.dim,
                        &h.pairs, &interleaved, &out))
    return NULL;
  const int fits = floats(&x) == h.tokens * h.heads * h.dim && out.len == x.len && h.pairs >= 0 &&
                   2 * h.pairs <= h.dim && floats(&cosines) == h.tokens * h.pairs && sines.len == cosines.len;
  if (fits) {
    Py_BEGIN_ALLOW_THREADS;
    rotate(x.buf, cosines.buf, sines.buf, out.buf, &h, interleaved);
    Py_END_ALLOW_THREADS;
  }
  return END("rotate", fits, &x, &cosines, &sines, &out);
}

static PyMethodDef methods[] = {
    {"differ", py_differ, METH_O, "differ([(a, b, starts, valid, head_dim, floor, mapped, out, lost), ...])"},
    {"attend", py_attend, METH_VARARGS,
     "attend(q, k, v, sinks, first, last, (heads, kv_heads, tile, scale, softcap), out, scores, probs, m, l, "
     "m_tiles, l_tiles)"},
    {"rms_norm", py_rms_norm, METH_VARARGS, "rms_norm(x, gain, eps, out)"},
    {"rotate", py_rotate, METH_VARARGS,
     "rotate(x, cosines, sines, (tokens, heads, dim, pairs), interleaved, out)"},
    {"silu_glu", py_silu_glu, METH_VARARGS, "silu_glu(gate, up, out)"},
    {"multiply", py_multiply, METH_VARARGS, "multiply(kind, w, x, out)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&module); }
