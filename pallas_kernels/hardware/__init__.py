"""Shows what the real TPU and GPU compilers make of a function, on a machine that has neither."""
