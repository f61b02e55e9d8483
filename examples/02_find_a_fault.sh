#!/bin/sh
# An engine rotates the wrong pairs in layer 3 only.  Which operation is wrong, and why?
set -eu
trace record -p "Once upon a time" -n 2 --layers 0-4 -o reference.h5 -q
trace record -p "Once upon a time" -n 2 --layers 0-4 -o mine.h5 -q --inject rope_pairing@3
trace compare mine.h5 reference.h5 --model smollm2-135m --markdown sheet.md && exit 9 # 1: they differ
head -20 sheet.md
