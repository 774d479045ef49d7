"""Handwritten digits: a small class-conditional diffusion transformer, its training and its evaluation."""
