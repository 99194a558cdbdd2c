"""Rounding a weight better than to nearest: scales that fit, and errors that cancel at the layer's output."""
