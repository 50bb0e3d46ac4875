"""Effects of heads on the answers, measured by patching."""
