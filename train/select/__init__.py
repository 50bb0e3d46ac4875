"""The subcommand that scores heads and chooses the softmax heads."""
