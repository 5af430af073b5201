"""Dictionaries: sparse autoencoders and transcoders, read on demand and answered sparsely."""
