"""What a run adds to the library: phases, checks, resume, several processes."""
