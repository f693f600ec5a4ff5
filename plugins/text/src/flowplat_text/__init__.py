"""Text: data, network, metrics and tasks for masked diffusion of tokens."""
