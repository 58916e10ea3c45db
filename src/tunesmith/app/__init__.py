"""The doors people use. Nobody imports them."""
