"""Layers over the stores, and what is kept in them: embeddings, search results, answers."""
