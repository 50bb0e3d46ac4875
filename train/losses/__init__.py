"""The losses of the stages."""
