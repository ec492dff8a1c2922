"""What a model is trained to do: batch in, loss and metrics out."""
