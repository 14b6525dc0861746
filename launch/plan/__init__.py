"""What a TPU slice would make of training and generation, before it is rented."""
