/* The Python module `_rows`: writes and checksums the rows of many tensors in one call (tracer/rows.py). */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__)
#define VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORISED
#endif

enum { PIECES = 256, SHORT = 240 }; /* pieces of one pwritev; bytes up to which XXH3 works in another way */

/* ---- XXH3-64 of more than 240 bytes, without a seed (doc/xxhash_spec.md of the xxHash project) */

static const uint8_t SECRET[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4,
    0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e,
    0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43,
    0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb,
    0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef,
    0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7,
    0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73,
    0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb, 0x17,
    0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16, 0xbe,
    0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f, 0x95,
    0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};
enum { STRIPE = 64, STRIPES = (sizeof SECRET - STRIPE) / 8 }; /* bytes; stripes of a block */
static const uint64_t P32_1 = 0x9E3779B1U, P32_2 = 0x85EBCA77U, P32_3 = 0xC2B2AE3DU;
static const uint64_t P64_1 = 0x9E3779B185EBCA87ULL, P64_2 = 0xC2B2AE3D27D4EB4FULL,
                      P64_3 = 0x165667B19E3779F9ULL, P64_4 = 0x85EBCA77C2B2AE63ULL, P64_5 = 0x27D4EB2F165667C5ULL;

static inline __attribute__((always_inline)) uint64_t word(const uint8_t *p) {
  uint64_t value;
  memcpy(&value, p, sizeof value);
  return value;
}

static inline __attribute__((always_inline)) void accumulate(uint64_t acc[8], const uint8_t *stripe, const uint8_t *secret) {
  for (int i = 0; i < 8; ++i) {
    const uint64_t data = word(stripe + 8 * i), key = data ^ word(secret + 8 * i);
    acc[i ^ 1] += data;
    acc[i] += (key & 0xffffffff) * (key >> 32);
  }
}

VECTORISED static uint64_t checksum(const uint8_t *data, size_t size) {
  uint64_t acc[8] = {P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1};
  const size_t whole = (size - 1) / STRIPE; /* the last stripe, whole or not, comes in its own way */
  for (size_t n = 0; n < whole; ++n) {
    accumulate(acc, data + n * STRIPE, SECRET + n % STRIPES * 8);
    if (n % STRIPES == STRIPES - 1)
      for (int i = 0; i < 8; ++i)
        acc[i] = ((acc[i] ^ acc[i] >> 47) ^ word(SECRET + sizeof SECRET - STRIPE + 8 * i)) * P32_1;
  }
  accumulate(acc, data + size - STRIPE, SECRET + sizeof SECRET - STRIPE - 7);
  uint64_t hash = size * P64_1;
  for (int i = 0; i < 8; i += 2) {
    const uint8_t *secret = SECRET + 11 + 8 * i;
    const unsigned __int128 product =
        (unsigned __int128)(acc[i] ^ word(secret)) * (acc[i + 1] ^ word(secret + 8));
    hash += (uint64_t)product ^ (uint64_t)(product >> 64);
  }
  hash = (hash ^ hash >> 37) * 0x165667919E3779F9ULL;
  return hash ^ hash >> 32;
}

/* ---- writing */

/* Writes all pieces side by side from `at` on; 0, or what went wrong. */
static int write_all(int fd, struct iovec *pieces, int count, off_t at) {
  while (count) {
    const ssize_t done = pwritev(fd, pieces, count, at);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return done < 0 ? errno : ENOSPC;
    at += done;
    size_t left = (size_t)done;
    for (; count && left >= pieces->iov_len; ++pieces, --count) left -= pieces->iov_len;
    if (count) {
      pieces->iov_base = (char *)pieces->iov_base + left;
      pieces->iov_len -= left;
    }
  }
  return 0;
}

/* Rows that lie side by side in the file from `at` on: the next `count` of all. */
typedef struct {
  int64_t at, count;
} Run;

static int write_runs(int fd, const Run *runs, int64_t n, const Py_buffer *rows, uint64_t *sums) {
  for (int64_t r = 0; r < n; ++r) {
    int64_t at = runs[r].at;
    for (int64_t first = 0; first < runs[r].count; first += PIECES) {
      struct iovec pieces[PIECES];
      int64_t size = 0;
      int count = 0;
      for (; count < PIECES && first + count < runs[r].count; ++count, ++rows, ++sums) {
        if (rows->len > SHORT) *sums = checksum(rows->buf, (size_t)rows->len); /* brings it into the cache */
        pieces[count] = (struct iovec){rows->buf, (size_t)rows->len};
        size += rows->len;
      }
      const int error = write_all(fd, pieces, count, at);
      if (error) return error;
      at += size;
    }
  }
  return 0;
}

/* ---- Python */

/* write_runs(fd, runs int64 [run, (at, count)], rows [buffer], sums uint64 [row]): fills in the checksums of the
 * rows of more than 240 bytes. */
static PyObject *py_write_runs(PyObject *self, PyObject *arguments) {
  PyObject *list, *result = NULL;
  Py_buffer runs, sums;
  int fd, error = 0;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "iy*Ow*", &fd, &runs, &list, &sums)) return NULL;
  const int64_t n = runs.len / (int64_t)sizeof(Run), total = PyList_Size(list);
  Py_buffer *rows = PyMem_Calloc(total > 0 ? total : 1, sizeof *rows);
  int64_t held = 0, counted = 0;
  for (int64_t r = 0; r < n; ++r) counted += ((Run *)runs.buf)[r].count;
  if (total < 0 || counted != total || sums.len != 8 * total || !rows) {
    PyErr_SetString(PyExc_ValueError, "write_runs: the arrays do not fit together");
    goto done;
  }
  for (; held < total; ++held)
    if (PyObject_GetBuffer(PyList_GetItem(list, held), &rows[held], PyBUF_SIMPLE)) goto done;
  Py_BEGIN_ALLOW_THREADS;
  error = write_runs(fd, runs.buf, n, rows, sums.buf);
  Py_END_ALLOW_THREADS;
  if (error) {
    errno = error;
    PyErr_SetFromErrno(PyExc_OSError);
  } else {
    Py_INCREF(Py_None);
    result = Py_None;
  }
done:
  while (held) PyBuffer_Release(&rows[--held]);
  PyMem_Free(rows);
  PyBuffer_Release(&runs);
  PyBuffer_Release(&sums);
  return result;
}

static PyMethodDef methods[] = {
    {"write_runs", py_write_runs, METH_VARARGS, "write_runs(fd, runs, rows, sums)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_rows", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__rows(void) { return PyModule_Create(&module); }
