"""Jitted code: knows nothing but addresses, arrays and numbers."""
