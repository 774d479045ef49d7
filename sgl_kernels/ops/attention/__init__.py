"""Attention: dense, with log-sum-exp, and packed variable length."""
