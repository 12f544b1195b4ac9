"""Graph to Graph: one idea a file."""
