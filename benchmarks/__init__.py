"""Accuracy and speed, measured: every figure in the documentation comes from a record written here."""
