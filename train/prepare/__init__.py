"""`python -m train prepare`: text files to shards of tokens, once, by many processes."""
