"""Data sets with exact truth, made from embedded data: no download."""
