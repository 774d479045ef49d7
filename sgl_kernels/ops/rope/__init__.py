"""Rotary position embedding, alone and fused with the query and key norms."""
