"""Tests of the integrations with torch, diffusers and transformers."""
