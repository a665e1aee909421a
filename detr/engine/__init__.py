"""Training and evaluation on Detectron2's DefaultTrainer."""
