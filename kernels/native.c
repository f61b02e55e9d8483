/* The Python module `_native`: checks the sizes of buffers, lets go of the interpreter, calls a kernel. */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "native.h"

static PyObject *py_differ(PyObject *self, PyObject *arguments) {
  Py_buffer a, b, valid, out;
  long width, head_dim;
  int masked;
  float floor;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "y*y*z*lpflw*", &a, &b, &valid, &head_dim, &masked, &floor, &width, &out))
    return NULL;
  const long rows = width > 0 ? a.len / (long)sizeof(float) / width : 0;
  const int fits = width > 0 && head_dim >= 0 && (!head_dim || width % head_dim == 0) && a.len == b.len &&
                   a.len == rows * width * (long)sizeof(float) &&
                   (!valid.buf || valid.len == rows * (long)sizeof(long long)) &&
                   out.len == DIFFERENCES * rows * (long)sizeof(double);
  if (fits) {
    Py_BEGIN_ALLOW_THREADS;
    differ(a.buf, b.buf, rows, width, valid.buf, head_dim, masked ? &floor : NULL, out.buf);
    Py_END_ALLOW_THREADS;
  }
  PyBuffer_Release(&a);
  PyBuffer_Release(&b);
  if (valid.obj) PyBuffer_Release(&valid);
  PyBuffer_Release(&out);
  if (fits) Py_RETURN_NONE;
  PyErr_SetString(PyExc_ValueError, "differ: the arrays do not fit together");
  return NULL;
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
    {"differ", py_differ, METH_VARARGS, "differ(a, b, valid, head_dim, masked, floor, width, out)"},
    {"multiply", py_multiply, METH_VARARGS, "multiply(kind, w, x, out)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&module); }
