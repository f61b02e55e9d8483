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

static PyMethodDef methods[] = {
    {"differ", py_differ, METH_O, "differ([(a, b, starts, valid, head_dim, floor, mapped, out, lost), ...])"},
    {"multiply", py_multiply, METH_VARARGS, "multiply(kind, w, x, out)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&module); }
