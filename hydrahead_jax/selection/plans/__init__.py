"""Which heads keep softmax attention."""
