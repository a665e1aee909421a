"""Pictures of data, predictions and trainings, for scripts: no module of the package draws."""
