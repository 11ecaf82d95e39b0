"""Networks to prune: CIFAR ResNets, weights in and out, input normalisation as the first layer."""
