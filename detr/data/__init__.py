"""Data: transforms, the mapper, checks before training, and the embedded shapes."""
