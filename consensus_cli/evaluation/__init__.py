"""What a network costs and how well it answers: accuracy, complexity, energy, robustness."""
