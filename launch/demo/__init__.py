"""The demo model: its training, its evaluation, and pictures of the phantom it has seen."""
