"""Networks: the papers' classifiers and generators, a zoo of names, adapters, size counts."""
