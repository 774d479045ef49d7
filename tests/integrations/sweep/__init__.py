"""Every architecture of transformers, small and random: what its own implementation computes against ours."""
