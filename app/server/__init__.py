"""What serves the page: the model and its queue, the guard, uploads, and the answers it holds."""
