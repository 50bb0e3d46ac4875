"""Makes scores of heads from the effects of many pairs."""
