"""Parts of attention that normalize."""
