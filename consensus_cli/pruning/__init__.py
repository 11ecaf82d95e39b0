"""Finding residual blocks in a network, removing them for real, and planning how many go per step."""
