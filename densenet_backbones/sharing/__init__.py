"""Share a trained model: a model card made from its run, and both sent to the Hugging Face Hub."""
