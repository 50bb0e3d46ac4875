"""Computes with rows of tokens that lie on several devices, inside `jax.shard_map`.

Rank r of R holds a part of every row. In "contiguous" order it is the r-th of R parts. In "zigzag"
order the row is cut into 2R chunks and rank r holds chunks r and 2R - 1 - r, called its low and its
high chunk: under a causal mask every rank then has the same work.
"""
