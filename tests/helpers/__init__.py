"""What tests share: networks, images, runs, and checks."""
