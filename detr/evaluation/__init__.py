"""What is computed of predictions: evaluators, matches of detections and objects, the best threshold."""
