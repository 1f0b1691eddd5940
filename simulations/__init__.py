"""The Flower app around the library: data, models, entry points, experiments."""
