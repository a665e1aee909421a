"""Conversion of checkpoints between programs, and proof that both sides compute the same."""
