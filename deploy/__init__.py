"""Ways to start Tailrace."""
