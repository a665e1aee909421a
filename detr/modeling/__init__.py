"""The model: backbone adapter, transformer, matcher, set loss, postprocessing, and their wiring."""
