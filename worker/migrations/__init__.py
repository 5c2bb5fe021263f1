"""The order book's schema, step by step."""
