"""Data: transforms, the mappers, checks before training, and the embedded shapes."""
