"""The model: backbone adapter, transformer, matcher, set loss, postprocessing, and their wiring."""

# Before the modules of this package, which are registered with Detectron2's models.
import detectron2.modeling  # noqa: F401
