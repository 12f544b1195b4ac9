"""The benchmark suite: the same models on every engine installed, and the machine's limit beside them."""
