"""Two pages that show a reply as it grows, and the endpoint behind them."""
