"""Pure functions on tensors; they need torch alone."""
