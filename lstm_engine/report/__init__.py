"""Pages, tables and plots that the command line writes."""
