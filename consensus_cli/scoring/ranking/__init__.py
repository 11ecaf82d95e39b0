"""From distances to an order of the blocks."""
