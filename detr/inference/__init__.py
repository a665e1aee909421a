"""Images and videos in, what a model finds in them out: around ``Predictor``."""
