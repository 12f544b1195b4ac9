"""Lowering: a Graph and concrete shapes become a flat Program for this machine."""
