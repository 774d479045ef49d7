"""Linear layers with an activation behind them."""
