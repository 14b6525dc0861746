"""Names and layouts of the published PyTorch GenerateCT weights, as pure array mappings."""
