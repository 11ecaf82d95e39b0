"""What a network costs: multiply-accumulates, latency, memory, energy."""
