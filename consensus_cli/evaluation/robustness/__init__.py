"""How a network answers under attack, corruption and shift."""
