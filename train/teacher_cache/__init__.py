"""The teacher's most probable tokens, written once and read by the stage that distills them."""
