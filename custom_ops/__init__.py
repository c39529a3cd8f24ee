"""Room of the perforated convolution op; empty as yet."""
