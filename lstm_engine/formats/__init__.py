"""Model files to Graphs: the only rooms that know a file format."""
