"""What is run beside the package, from a clone."""
