"""What happens to hits between the index and the prompt."""
