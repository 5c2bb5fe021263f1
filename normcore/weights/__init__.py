"""Weight methods, one per file: what becomes of the weights before they are used, whatever norm follows."""
