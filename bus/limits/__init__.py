"""How often callers may ask, and how many connections they may have, counted over all workers of the machine.

`buckets` says who may take how many tokens in a window of time; `shared_buckets` keeps that in one table of fixed size;
`places` counts connections; `peers` tells whose address a request comes from; `limits` says which limit holds for whom.
"""
