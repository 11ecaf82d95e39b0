"""How far the network without a block is from the network with it: representations, metrics, rank aggregation."""
