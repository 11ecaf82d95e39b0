"""Statistics of representations, streamed over samples and mergeable."""
