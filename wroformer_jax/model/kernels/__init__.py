"""Attention for TPUs as Pallas kernels: `windowed` for frames and their sinks, `dense` for rows seen as a whole.

Heads lie side by side in the last axis, since a TPU holds 128 numbers in a row: an array whose last axis is a head of
64 would waste half of it, and every change between the two layouts is a copy. `blocks` has what both kernels compute
for one block of queries.
"""
