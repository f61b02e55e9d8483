/* One row of the online softmax (softmax.c). */
#pragma once

/* Takes scores [count], of which those from `first` to before `last` are seen, into the state m, l: they become
 * exp(score - m), or 0 where not seen, and `kept` (or null) takes them as softmax sees them.  Gives the factor
 * for what was summed up before. */
float fold_row(float *scores, long count, long first, long last, float *m, float *l, float *kept);
