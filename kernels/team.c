/* The threads behind `share_out`.  OpenMP's own wait for one another after every loop, and where one of them
 * had to give its core away (to the thread that writes the trace) all the others wait with it. */
#define _GNU_SOURCE
#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum { MOST = 16 };      /* threads: past these, memory is what a product waits for */
enum { OPEN = 1 << 30 }; /* of `state`: helpers may come in; the bits below count those inside */
#ifndef LOOKS
#define LOOKS 2000 /* for a next loop, each a fraction of a microsecond, before a helper goes to sleep */
#endif

static struct {
  Take *take;
  const void *loop;
  long count, share;
  atomic_long next;
} job;
static atomic_int state, asleep;
static atomic_uint number; /* of the loop */
static atomic_flag taken = ATOMIC_FLAG_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static int helpers; /* that were started; whoever has `taken` may write it */

static void take_shares(void) {
  for (long first; (first = atomic_fetch_add(&job.next, job.share)) < job.count;)
    job.take(job.loop, first, job.count - first < job.share ? job.count : first + job.share);
}

/* Whether the loop is still open; its memory then stays until `leave`. */
static int enter(void) {
  int now = atomic_load(&state);
  while (now & OPEN)
    if (atomic_compare_exchange_weak(&state, &now, now + 1)) return 1;
  return 0;
}

static void leave(void) { atomic_fetch_sub(&state, 1); }

static void wait_for_loop_after(unsigned seen) {
  for (int i = 0; i < LOOKS; ++i) {
    if (atomic_load(&number) != seen) return;
    sched_yield(); /* who else wants this core gets it */
  }
  pthread_mutex_lock(&lock);
  atomic_fetch_add(&asleep, 1);
  while (atomic_load(&number) == seen) pthread_cond_wait(&wake, &lock);
  atomic_fetch_sub(&asleep, 1);
  pthread_mutex_unlock(&lock);
}

static void *help(void *unused) {
  for (unsigned seen = 0;;) {
    wait_for_loop_after(seen);
    seen = atomic_load(&number);
    if (enter()) {
      take_shares();
      leave();
    }
  }
  return unused;
}

/* A child of fork has none of the helpers, and the lock as one of them may have held it. */
static void forget(void) {
  helpers = 0;
  atomic_store(&state, 0);
  atomic_store(&asleep, 0);
  atomic_store(&number, 0);
  atomic_flag_clear(&taken);
  pthread_mutex_init(&lock, NULL);
  pthread_cond_init(&wake, NULL);
}

int cores(void) {
#ifdef __linux__
  cpu_set_t set;
  if (!sched_getaffinity(0, sizeof set, &set)) return CPU_COUNT(&set);
#endif
  return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

static int most_helpers(void) {
  const char *const limit = getenv("OMP_NUM_THREADS");
  const int wanted = limit && atoi(limit) > 0 ? atoi(limit) : cores();
  return (wanted < MOST ? wanted : MOST) - 1;
}

/* Has `wanted` helpers there, or as many as the machine lets us. */
static void start_helpers(int wanted) {
  static int most = -1;
  if (most < 0) {
    most = most_helpers();
    pthread_atfork(NULL, NULL, forget);
  }
  if (helpers >= wanted || helpers >= most) return;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the threads of the program */
  for (pthread_t thread; helpers < wanted && helpers < most; ++helpers) {
    if (pthread_create(&thread, NULL, help, NULL)) {
      most = helpers;
      break;
    }
    pthread_detach(thread);
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void share_out(Take *take, const void *loop, long count, long share) {
  if (count <= share || atomic_flag_test_and_set(&taken)) { /* the helpers serve one loop at a time */
    take(loop, 0, count);
    return;
  }
  const long shares = (count + share - 1) / share;
  start_helpers(shares < MOST ? (int)shares - 1 : MOST - 1);
  job.take = take, job.loop = loop, job.count = count, job.share = share;
  atomic_store(&job.next, 0);
  if (helpers) {
    atomic_store(&state, OPEN);
    atomic_fetch_add(&number, 1);
    if (atomic_load(&asleep)) {
      pthread_mutex_lock(&lock);
      pthread_cond_broadcast(&wake);
      pthread_mutex_unlock(&lock);
    }
  }
  take_shares();
  atomic_fetch_and(&state, ~OPEN);
  while (atomic_load(&state)) sched_yield(); /* until those inside have ended their last share */
  atomic_flag_clear(&taken);
}
