"""Holds gated slot attention: a softmax over slots that a gated linear recurrence writes."""
