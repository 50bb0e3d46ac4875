"""Pure functions: no parameters, no flax."""
