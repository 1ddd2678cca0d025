"""Vector backends: records found by the similarity of their vectors."""
