"""Full-text search over what is kept: words, the index, what fills it, and what asks it. See docs/search.md."""
