/* A loop shared out to the cores. */
#pragma once

/* Takes the items from `first` to before `end`. */
typedef void Take(const void *loop, long first, long end);

/* Has every item of 0 … count - 1 taken, `share` of them at a time, by the caller and whichever of its helpers
 * have a core to run on; returns when all are done.  Helpers that are elsewhere are not waited for, so that
 * other work on the machine costs its own time only.  OMP_NUM_THREADS bounds the threads, the caller included. */
void share_out(Take *take, const void *loop, long count, long share);

/* How many cores this process may run on. */
int cores(void);
