"""Key-value backends: bytes under keys, with a time to live."""
