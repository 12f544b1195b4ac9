"""Pages and pictures of what a network is and did: each one file, out of arrays and words, that needs no network."""
