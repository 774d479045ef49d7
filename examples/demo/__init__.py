"""The main job on real models: digits from a diffusion transformer, and embeddings from a text model."""
