/* The Python module `_rows`: packs a step's arrays (tracer/pack.py), writes and checksums rows (tracer/rows.py). */
#define _GNU_SOURCE
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../kernels/team.h"
#include "xxh3.h"

enum { AXES = 8 };                      /* of an array that is packed here */
enum { PIECES = 256, CHUNK = 1 << 20 }; /* rows and bytes of one pwritev */
enum { SPARE = 4 }; /* cores from which on a helper sums: of fewer, an engine on the CPU needs every one */

/* Where an array belongs in a block: it begins at byte `at` and has room for `room` items along its `axes`.
 * `kind` is the items' type as Python's buffers name it, `fill` the byte that shows where there are none. */
typedef struct {
  int64_t at, kind, fill, axes, room[AXES];
} Spot;

/* Rows that lie `begin` bytes into each block, `size` bytes long, and side by side in the file from `at` on. */
typedef struct {
  int64_t begin, size, at;
} Column;

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

/* Has the disk find the place at once: the kernel then copies in two thirds of the time. */
static void reserve(int fd, off_t at, size_t size) {
#ifdef __linux__
  (void)!fallocate(fd, FALLOC_FL_KEEP_SIZE, at, (off_t)size); /* where it cannot, the writes will say so */
#endif
}

/* A chunk of a long row, on its way. */
typedef struct {
  int fd;
  struct iovec bytes;
  off_t at;
  Xxh3 *sum;
  size_t end; /* in the row */
  int *error;
} Chunk;

/* Its two items: that it is written, and that it is summed. */
static void take_chunk(const void *loop, long first, long end) {
  const Chunk *const chunk = loop;
  if (first == 0) {
    struct iovec bytes = chunk->bytes;
    *chunk->error = write_all(chunk->fd, &bytes, 1, chunk->at);
  }
  if (end == 2) xxh3_add(chunk->sum, chunk->end);
}

/* Writes a long row chunk by chunk, summed by a helper meanwhile or at once after, while it is in the cache. */
static int write_long(int fd, struct iovec row, off_t at, uint64_t *sum) {
  Xxh3 running = xxh3_begin(row.iov_base, row.iov_len);
  const long share = cores() < SPARE ? 2 : 1;
  int error = 0;
  reserve(fd, at, row.iov_len);
  for (size_t first = 0; first < row.iov_len && !error; first += CHUNK) {
    const size_t size = row.iov_len - first < CHUNK ? row.iov_len - first : CHUNK;
    const struct iovec bytes = {(char *)row.iov_base + first, size};
    const Chunk chunk = {fd, bytes, at + (off_t)first, &running, first + size, &error};
    share_out(take_chunk, &chunk, 2, share);
  }
  *sum = xxh3_end(&running);
  return error;
}

/* Writes rows side by side from `at` on; `sums` takes their checksums, `every` of them apart. */
static int write_rows(int fd, const struct iovec *rows, int64_t n, off_t at, uint64_t *sums, int64_t every) {
  int error = 0;
  for (int64_t i = 0; i < n && !error;) {
    struct iovec pieces[PIECES];
    int count = 0;
    int64_t size = 0;
    for (; i < n && count < PIECES && size + (int64_t)rows[i].iov_len <= CHUNK; ++i) {
      pieces[count++] = rows[i];
      sums[i * every] = xxh3(rows[i].iov_base, rows[i].iov_len); /* brings it into the cache */
      size += (int64_t)rows[i].iov_len;
    }
    if (count) error = write_all(fd, pieces, count, at);
    else {
      size = (int64_t)rows[i].iov_len;
      error = write_long(fd, rows[i], at, sums + i * every);
      ++i;
    }
    at += size;
  }
  return error;
}

/* `rows` [steps]: the blocks on entry, used up as room for their rows. */
static int write_columns(int fd, const Column *columns, int64_t n, struct iovec *rows, int64_t steps,
                         uint64_t *sums) {
  int error = 0;
  for (int64_t i = 0, before = 0; i < n && !error; before = columns[i++].begin) {
    for (int64_t s = 0; s < steps; ++s) {
      rows[s].iov_base = (char *)rows[s].iov_base + (columns[i].begin - before);
      rows[s].iov_len = (size_t)columns[i].size;
    }
    error = write_rows(fd, rows, steps, columns[i].at, sums + i, n);
  }
  return error;
}

/* Copies an array of `size` items along its axes into its room; 0 where more than one axis is shorter. */
static int lay(char *to, const char *from, const int64_t *size, const Spot *spot, size_t item) {
  size_t outer = 1, part = item;
  int axis = (int)spot->axes;
  while (axis > 0 && size[axis - 1] == spot->room[axis - 1]) part *= (size_t)size[--axis];
  size_t whole = part;
  if (axis > 0) {
    --axis;
    whole *= (size_t)spot->room[axis];
    part *= (size_t)size[axis];
  }
  while (axis > 0) {
    --axis;
    if (size[axis] != spot->room[axis]) return 0;
    outer *= (size_t)size[axis];
  }
  for (; outer; --outer, to += whole, from += part) {
    memcpy(to, from, part);
    memset(to + part, (int)spot->fill, whole - part);
  }
  return 1;
}

/* ---- Python */

/* The buffers of a list, and where they lie; `count` is -1 where one is missing. */
typedef struct {
  Py_ssize_t count;
  Py_buffer *views;
  struct iovec *rows;
} Buffers;

static void let_go(Buffers *buffers, Py_ssize_t count) {
  while (count > 0) PyBuffer_Release(&buffers->views[--count]);
  PyMem_Free(buffers->views);
  PyMem_Free(buffers->rows);
}

static Buffers take(PyObject *list) {
  Buffers taken = {PyList_Size(list), NULL, NULL};
  if (taken.count < 0) return taken;
  taken.views = PyMem_Calloc((size_t)taken.count + 1, sizeof *taken.views);
  taken.rows = PyMem_Calloc((size_t)taken.count + 1, sizeof *taken.rows);
  Py_ssize_t held = 0;
  if (!taken.views || !taken.rows) PyErr_NoMemory();
  else
    for (; held < taken.count; ++held) {
      if (PyObject_GetBuffer(PyList_GetItem(list, held), &taken.views[held], PyBUF_SIMPLE)) break;
      taken.rows[held] = (struct iovec){taken.views[held].buf, (size_t)taken.views[held].len};
    }
  if (held < taken.count || !taken.views || !taken.rows) {
    let_go(&taken, held);
    taken.count = -1;
  }
  return taken;
}

static PyObject *answer(int fits, int error) {
  if (!fits) PyErr_SetString(PyExc_ValueError, "the arrays do not fit together");
  if (fits && error) {
    errno = error;
    PyErr_SetFromErrno(PyExc_OSError);
  }
  if (!fits || error) return NULL;
  Py_RETURN_NONE;
}

static PyObject *py_write_row(PyObject *self, PyObject *arguments) {
  Py_buffer row;
  long long at;
  uint64_t sum = 0;
  int fd, error;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "iLy*", &fd, &at, &row)) return NULL;
  const struct iovec bytes = {row.buf, (size_t)row.len};
  Py_BEGIN_ALLOW_THREADS;
  error = write_rows(fd, &bytes, 1, at, &sum, 1);
  Py_END_ALLOW_THREADS;
  PyBuffer_Release(&row);
  return error ? answer(1, error) : PyLong_FromUnsignedLongLong(sum);
}

static PyObject *py_write_columns(PyObject *self, PyObject *arguments) {
  PyObject *list;
  Py_buffer columns, sums;
  int fd, error = 0;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "iy*Ow*", &fd, &columns, &list, &sums)) return NULL;
  Buffers blocks = take(list);
  const Column *column = columns.buf;
  const int64_t n = columns.len / (int64_t)sizeof(Column);
  int fits = sums.len == 8 * n * blocks.count;
  for (int64_t i = 0; i < n && fits; ++i)
    for (Py_ssize_t s = 0; s < blocks.count; ++s)
      fits &= column[i].begin >= 0 && column[i].size >= 0 &&
              column[i].begin + column[i].size <= blocks.views[s].len;
  if (fits) {
    Py_BEGIN_ALLOW_THREADS;
    error = write_columns(fd, column, n, blocks.rows, blocks.count, sums.buf);
    Py_END_ALLOW_THREADS;
  }
  if (blocks.count >= 0) let_go(&blocks, blocks.count);
  PyBuffer_Release(&columns);
  PyBuffer_Release(&sums);
  return blocks.count < 0 ? NULL : answer(fits, error);
}

/* Packs one array; 0 where it is not of the size and type that the spot is for, and left to NumPy. */
static int pack_one(PyObject *array, const Spot *spot, const int64_t *size, const Py_buffer *block) {
  Py_buffer view;
  if (PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)) {
    PyErr_Clear();
    return 0;
  }
  int fits = view.ndim == spot->axes && view.ndim <= AXES && view.format[0] == spot->kind && !view.format[1];
  int64_t end = spot->at + view.itemsize;
  for (int axis = 0; fits && axis < view.ndim; ++axis) {
    fits = view.shape[axis] == size[axis] && size[axis] <= spot->room[axis];
    end = spot->at + (end - spot->at) * spot->room[axis];
  }
  fits = fits && spot->at >= 0 && end <= block->len;
  fits = fits && lay((char *)block->buf + spot->at, view.buf, size, spot, (size_t)view.itemsize);
  PyBuffer_Release(&view);
  return fits;
}

static PyObject *py_pack(PyObject *self, PyObject *arguments) {
  PyObject *list;
  Py_buffer spots, sizes, block;
  (void)self;
  if (!PyArg_ParseTuple(arguments, "Oy*y*w*", &list, &spots, &sizes, &block)) return NULL;
  PyObject *left = PyList_New(0);
  const Py_ssize_t n = PyList_Size(list);
  const Spot *spot = spots.buf;
  const int64_t *size = sizes.buf;
  int good = left && n >= 0 && spots.len == n * (Py_ssize_t)sizeof *spot &&
             sizes.len == n * AXES * (Py_ssize_t)sizeof *size;
  if (!good && !PyErr_Occurred()) answer(0, 0);
  for (Py_ssize_t i = 0; good && i < n; ++i, ++spot, size += AXES)
    if (!pack_one(PyList_GetItem(list, i), spot, size, &block)) {
      PyObject *number = PyLong_FromSsize_t(i);
      good = number && !PyList_Append(left, number);
      Py_XDECREF(number);
    }
  PyBuffer_Release(&spots);
  PyBuffer_Release(&sizes);
  PyBuffer_Release(&block);
  if (!good) Py_CLEAR(left);
  return left;
}

static PyMethodDef methods[] = {
    {"pack", py_pack, METH_VARARGS, "pack(arrays, spots, sizes, block) -> the numbers of those left over"},
    {"write_row", py_write_row, METH_VARARGS, "write_row(fd, offset, row) -> its checksum"},
    {"write_columns", py_write_columns, METH_VARARGS, "write_columns(fd, columns, blocks, sums)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_rows", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__rows(void) { return PyModule_Create(&module); }
