"""Parameters, multiply-adds and measurements of models and of the training input."""
