"""Training of compression adapters: recipe -> data -> batches -> stage -> loop -> adapter folder."""
